"""What the last state of a chain was after every round of a solve, which ends when it has come near enough."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fixedpoint
from fixedpoint.chains.chain import ChainProblem
from fixedpoint.core.loop import Progress


class Recorded:
    """Keeps what the last step made after every round; with ``enough`` the solve ends once all rows are that near.

    ``images`` holds one tensor ``(B, *event)`` per round, ``errors`` the relative error of each row to ``target``,
    ``spent`` the evaluations a row had taken, ``rounds`` the number of the round.
    """

    def __init__(self, problem: ChainProblem, target: Tensor, enough: float = 0.0) -> None:
        self.problem = problem
        self.target = target
        self.enough = enough
        self.images: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.spent: list[NDArray[np.int64]] = []
        self.rounds: list[int] = []

    @property
    def evaluations(self) -> int:
        """Of the chain's steps, so far."""
        return int(self.spent[-1].sum())

    def __call__(self, progress: Progress) -> None:
        assert progress.latest is not None  # chain solvers tell it
        assert progress.evaluations is not None
        if self.rounds and self.rounds[-1] == progress.round:
            return  # nothing was left to evaluate
        self.rounds.append(progress.round)
        self.spent.append(progress.evaluations)
        last = progress.latest.unflatten(1, (-1, *self.target.shape[1:]))[:, -1]
        self.images.append(last.clone())
        apart = (last - self.target).flatten(1).double().norm(dim=1)
        self.errors.append(apart / self.target.flatten(1).double().norm(dim=1))
        if bool((self.errors[-1] <= self.enough).all()):
            raise EnoughError

    def rounds_to(self, tolerance: float) -> int | None:
        """Rounds after which the worst row is, and stays, within a relative error; None if it never is."""
        worst = torch.stack(self.errors).amax(dim=1)
        beyond = torch.nonzero(worst > tolerance).flatten()
        reached = int(beyond[-1]) + 1 if len(beyond) else 0
        return self.rounds[reached] if reached < len(worst) else None


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
            x = problem.pairs(x, torch.full_like(problem.rows, step), torch.arange(len(x)))
        worst = float(((x - target).flatten(1).double().norm(dim=1) / size).amax())
        missing, reached = (missing, rounds) if worst <= tolerance else (rounds, reached)
    return reached


def serial(problem: ChainProblem) -> Tensor:
    """The chain's result, step by step."""
    last: Tensor = fixedpoint.solve(problem, solver="serial").z[:, -1]
    return last


def record(
    problem: ChainProblem,
    target: Tensor,
    solver: fixedpoint.Solver,
    rounds: int,
    enough: float = 0.0,
    rtol: float = 0.0,
) -> Recorded:
    """Solve for a number of rounds at most, and keep every round's last state; rtol 0: whatever the solver thinks."""
    seen = Recorded(problem, target, enough)
    with contextlib.suppress(EnoughError):
        fixedpoint.solve(problem, solver=solver, rtol=rtol, max_rounds=rounds, on_round=seen)
    return seen
