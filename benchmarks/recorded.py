"""A chain that keeps what its last state was after every round, and ends the solve when it has seen enough."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

import fixedpoint
from fixedpoint.chains.chain import ChainProblem


class RecordedChain(ChainProblem):
    """Keeps the last state of every evaluation; with ``enough`` the solve ends once all rows are that near to it.

    ``images`` holds one tensor ``(B, *event)`` per round, ``errors`` the relative error of each row to ``target``,
    ``spent`` the evaluations a row had taken.
    """

    def __init__(self, problem: ChainProblem, target: Tensor, enough: float = 0.0) -> None:
        super().__init__(problem.chain, problem.x0, max_batch=problem.max_batch, rows=problem.rows)
        self.target = target
        self.enough = enough
        self.images: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.evaluations = 0
        self.spent: list[int] = []

    def resume(self, z: Tensor, first: int) -> Tensor:
        value = super().resume(z, first)
        self.evaluations += len(z) * max(self.length - first, 0)
        self.spent.append(max(self.length - first, 0) + (self.spent[-1] if self.spent else 0))
        self.images.append(value.unflatten(1, (self.length, -1))[:, -1].reshape(self.target.shape).clone())
        apart = (self.images[-1] - self.target).flatten(1).double().norm(dim=1)
        self.errors.append(apart / self.target.flatten(1).double().norm(dim=1))
        if bool((self.errors[-1] <= self.enough).all()):
            raise EnoughError
        return value

    def rounds_to(self, tolerance: float) -> int | None:
        """Rounds after which the worst row is, and stays, within a relative error; None if it never is."""
        worst = torch.stack(self.errors).amax(dim=1)
        beyond = torch.nonzero(worst > tolerance).flatten()
        reached = int(beyond[-1]) + 2 if len(beyond) else 1
        return reached if reached <= len(worst) else None


class EnoughError(Exception):
    """Every row is as near as was asked for."""


def jacobi_rounds(problem: ChainProblem, target: Tensor, tolerance: float) -> int:
    """What :meth:`RecordedChain.rounds_to` finds for plain rounds with the preconditioner zero, without the rounds.

    After ``k`` such rounds from ``x_0`` everywhere the last state is what the last ``k`` steps make of it. That
    costs ``k`` evaluations rather than all of ``k`` rounds; found by bisection, as the error falls towards the end.
    """
    size = target.flatten(1).double().norm(dim=1)
    missing, reached = 0, problem.length
    while reached - missing > 1:
        rounds = (missing + reached) // 2
        x = problem.x0
        for step in range(problem.length - rounds, problem.length):
            x = problem.advance(x, step)
        worst = float(((x - target).flatten(1).double().norm(dim=1) / size).amax())
        missing, reached = (missing, rounds) if worst <= tolerance else (rounds, reached)
    return reached


def serial(problem: ChainProblem) -> Tensor:
    """The chain's result, step by step."""
    last: Tensor = fixedpoint.solve(problem, solver="serial").z[:, -1]
    return last


def record(
    problem: ChainProblem, target: Tensor, solver: fixedpoint.Solver, rounds: int, enough: float = 0.0
) -> RecordedChain:
    """Solve for a number of rounds at most, whatever the solver thinks of it, and keep every round's last state."""
    chain = RecordedChain(problem, target, enough)
    with contextlib.suppress(EnoughError):
        fixedpoint.solve(chain, solver=solver, rtol=0.0, max_rounds=rounds)
    return chain
