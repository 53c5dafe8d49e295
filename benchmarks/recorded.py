"""Records the last state of a chain after every round of a solve, which may end once the state is close enough."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fixedpoint
from fixedpoint import Solution
from fixedpoint.chains import ChainProblem
from fixedpoint.plugin import Progress


class Recorded:
    """Records the last state after every round.

    ``images`` holds one tensor of shape ``(B, *event)`` per round, ``errors`` the relative error of each row to
    ``target``, ``spent`` the evaluations of each row, and ``rounds`` the number of the round. With ``enough`` the solve
    ends once all rows have been within that error for ``more`` rounds after the first. ``solution`` is set when the
    solver has ended.
    """

    solution: Solution | None = None

    def __init__(self, target: Tensor, enough: float = 0.0, more: int = 0) -> None:
        self.target = target
        self.enough = enough
        self.more = more
        self.images: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.spent: list[NDArray[np.int64]] = []
        self.rounds: list[int] = []

    def __call__(self, progress: Progress) -> None:
        assert progress.latest is not None  # solvers of chains report it
        assert progress.evaluations is not None
        if self.rounds and self.rounds[-1] == progress.round:
            return  # nothing was left to evaluate
        self.rounds.append(progress.round)
        self.spent.append(progress.evaluations)
        last = progress.latest.unflatten(1, (-1, *self.target.shape[1:]))[:, -1]
        self.images.append(last.clone())
        self.errors.append(apart(last, self.target))
        near = [bool((error <= self.enough).all()) for error in self.errors[-1 - self.more :]]
        if len(near) > self.more and all(near):
            raise EnoughError

    def rounds_to(self, tolerance: float) -> int | None:
        """Rounds after which the worst row is, and stays, within a relative error; None if it never is."""
        worst = torch.stack(self.errors).amax(dim=1)
        beyond = torch.nonzero(worst > tolerance).flatten()
        reached = int(beyond[-1]) + 1 if len(beyond) else 0
        return self.rounds[reached] if reached < len(worst) else None


class EnoughError(Exception):
    """Raised when every row is within the requested error."""


def apart(images: Tensor, target: Tensor) -> Tensor:
    """The relative distance of every row, shape ``(B,)``, float64, on the CPU."""
    target = target.flatten(1).double()
    return ((images.flatten(1).double() - target).norm(dim=1) / target.norm(dim=1)).cpu()


def jacobi_rounds(problem: ChainProblem, target: Tensor, tolerance: float) -> int:
    """The result of :meth:`Recorded.rounds_to` for plain rounds with the preconditioner zero, without running them.

    After ``k`` such rounds from ``x_0`` everywhere, the last state is the result of the last ``k`` steps from ``x_0``,
    which takes only ``k`` evaluations. The number is found by bisection, since the error falls towards the end.
    """
    missing, reached = 0, problem.length
    row = torch.arange(len(problem.x0), device=problem.x0.device)
    while reached - missing > 1:
        rounds = (missing + reached) // 2
        x = problem.x0
        for step in range(problem.length - rounds, problem.length):
            x = problem.pairs(x, torch.full_like(row, step), row)
        near = bool((apart(x, target) <= tolerance).all())
        missing, reached = (missing, rounds) if near else (rounds, reached)
    return reached


def serial(problem: ChainProblem) -> Tensor:
    """The result of the chain, computed step by step."""
    last: Tensor = fixedpoint.solve(problem, solver="serial").z[:, -1]
    return last


def record(
    problem: ChainProblem,
    target: Tensor,
    solver: fixedpoint.Solver,
    rounds: int,
    enough: float = 0.0,
    *,
    more: int = 0,
    rtol: float = 0.0,
) -> Recorded:
    """Solve for at most a number of rounds, and record the last state of every round.

    Without ``rtol`` the solver does not stop by itself; with ``rtol`` it may.
    """
    seen = Recorded(target, enough, more)
    with contextlib.suppress(EnoughError):
        seen.solution = fixedpoint.solve(problem, solver=solver, rtol=rtol, max_rounds=rounds, on_round=seen)
    return seen
