"""Benches: the problems a solver is checked on, and how to make them misbehave.

A check says what must hold; a bench says on which problems. Solvers of chains have their own, since a chain is the
only kind of problem they take.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.api import solve
from fixedpoint.core.problem import HasMeasure, HasTake, Problem
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.testing.wrappers import Tally

__all__ = ["Bench", "CheckFailedError", "NotApplicableError", "UnsoundError", "independent_error", "require", "sound"]


class CheckFailedError(AssertionError):
    """What a check demands does not hold; the text says where."""


class UnsoundError(CheckFailedError):
    """An answer is not even finite, or has no status: no fault that a check is expected to show."""


class NotApplicableError(Exception):
    """A check has nothing to say about this solver; the text says why."""


class Bench(ABC):
    """Problems for one kind of solver.

    Parameters
    ----------
    solver
        The solver that is checked.
    """

    bound: float
    """Lipschitz constant of the contractions, which turns an error into a distance."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver

    def solve(self, problem: Problem, solver: Solver | None = None, **termination: Any) -> Solution:
        """Solve with the solver of this bench, or another."""
        return solve(problem, solver=solver or self.solver, termination=Termination(**termination))

    def alone(self, problem: Problem, row: int) -> Problem:
        """One row of a problem."""
        assert isinstance(problem, HasTake)  # every problem of a bench is
        return problem.take(torch.tensor([row]))

    @abstractmethod
    def contractions(self, dtype: torch.dtype = torch.float64) -> dict[str, Problem]:
        """Problems every solver must solve, with what they are; several rows each."""

    @abstractmethod
    def answer(self, problem: Problem) -> Float[Tensor, "B D"]:
        """The solution of a contraction."""

    @abstractmethod
    def family(self) -> dict[str, Problem]:
        """Problems, hard ones among them, on which a solver must at least be honest."""

    @abstractmethod
    def slow(self, dtype: torch.dtype = torch.float64) -> Problem:
        """A problem that takes every solver more than a few rounds."""

    def unhurried(self) -> Problem:
        """A problem that a limit on rounds cuts short."""
        return self.slow()

    @abstractmethod
    def solved(self) -> Problem:
        """A problem whose start is its solution."""

    @abstractmethod
    def degenerate(self) -> dict[str, Problem]:
        """Problems whose histories of differences vanish, repeat or outnumber the unknowns."""

    @abstractmethod
    def diverging(self) -> dict[str, Problem]:
        """Problems without a solution, or from which plain iteration runs away."""

    @abstractmethod
    def beside_diverging(self) -> tuple[Problem, Problem, Sequence[int]]:
        """A problem, the same with some rows diverging, and the rows that are sound in both."""

    @abstractmethod
    def scaled(self, problem: Problem, factor: float) -> Problem:
        """The problem in other units."""

    @abstractmethod
    def poisoned(self, problem: Problem, row: int, value: float, grace: int) -> Problem:
        """The problem with a row that turns NaN or Inf, after ``grace`` sound evaluations or steps."""

    @abstractmethod
    def counted(self, problem: Problem) -> tuple[Problem, Tally]:
        """The problem, and what will be counted in it."""

    @abstractmethod
    def raising(self, problem: Problem, error: Exception) -> Problem:
        """The problem with a function that raises ``error`` at its second call."""

    @abstractmethod
    def structured(self) -> Sequence[Float[Tensor, "B D"]]:
        """The state found for one function on a tensor, and on tuples and dicts of its pieces."""

    @abstractmethod
    def from_start(self, start: Float[Tensor, "B D"]) -> Solution:
        """Solve a contraction from a start of the user's, of the shape of ``free_start``."""

    @abstractmethod
    def free_start(self) -> Float[Tensor, "B D"]:
        """A start for :meth:`from_start`."""


def require(holds: bool, detail: str) -> None:
    """Fail the check with ``detail`` unless ``holds``."""
    if not holds:
        raise CheckFailedError(detail)


def sound(solution: Solution, name: str) -> None:
    """Demand what any solution has: a final status in every row and a finite point."""
    if not all(status != 0 for status in solution.status):
        raise UnsoundError(f"{name}: a row ended without a status")
    if not bool(solution.state.isfinite().all()):
        raise UnsoundError(f"{name}: the returned point is not finite")


def independent_error(problem: Problem, z: Float[Tensor, "B D"]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Error and scale of a point, worked out anew: one more evaluation, plain norms, float64."""
    with torch.no_grad():
        fz = problem(z.clone())
    if isinstance(problem, HasMeasure):
        measure = problem.measure(z, fz, fz - z)
        return measure.error.amax(dim=1), measure.scale.amax(dim=1)
    norm = torch.linalg.vector_norm
    return norm((fz - z).double(), dim=1), norm(fz.double(), dim=1)
