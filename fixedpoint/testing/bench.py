"""Benches: the problems a solver is checked on, and variants of them that misbehave.

A check defines what must hold; a bench defines on which problems. Solvers of chains have benches of their own, since
they accept only chains.
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
    """Raised when a check fails; the text says where."""


class UnsoundError(CheckFailedError):
    """Raised when an answer is not finite or has no status. It is never the expected failure of a check."""


class NotApplicableError(Exception):
    """Raised when a check does not apply to a solver; the text says why."""


class Bench(ABC):
    """Problems for one kind of solver.

    Parameters
    ----------
    solver
        The solver that is checked.
    """

    bound: float
    """Lipschitz constant of the contractions, used to turn an error into a distance; 0 for chains."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver

    def solve(self, problem: Problem, solver: Solver | None = None, **termination: Any) -> Solution:
        """Solve with ``solver``, by default the solver of this bench; keyword arguments go to ``Termination``."""
        return solve(problem, solver=solver or self.solver, termination=Termination(**termination))

    def alone(self, problem: Problem, row: int) -> Problem:
        """Return the problem of one row."""
        assert isinstance(problem, HasTake)  # every problem of a bench is
        return problem.take(torch.tensor([row], device="cpu"))

    @abstractmethod
    def contractions(self, dtype: torch.dtype = torch.float64) -> dict[str, Problem]:
        """Return problems that every solver must solve, by description; each has several rows."""

    @abstractmethod
    def answer(self, problem: Problem) -> Float[Tensor, "B D"]:
        """Return the known solution of a contraction."""

    @abstractmethod
    def family(self) -> dict[str, Problem]:
        """Return problems, some of them hard, on which a solver must at least report its error and status correctly."""

    @abstractmethod
    def slow(self, dtype: torch.dtype = torch.float64) -> Problem:
        """Return a problem that takes every solver more than a few rounds."""

    def unhurried(self) -> Problem:
        """Return a problem whose solve is cut short by a limit of a few rounds."""
        return self.slow()

    @abstractmethod
    def solved(self) -> Problem:
        """Return a problem whose start is its solution."""

    @abstractmethod
    def degenerate(self) -> dict[str, Problem]:
        """Return problems whose histories of differences vanish, repeat or outnumber the unknowns."""

    @abstractmethod
    def diverging(self) -> dict[str, Problem]:
        """Return problems that have no solution, or on which plain iteration diverges."""

    @abstractmethod
    def beside_diverging(self) -> tuple[Problem, Problem, Sequence[int]]:
        """Return a problem, the same problem with some rows that diverge, and the rows that are sound in both."""

    @abstractmethod
    def scaled(self, problem: Problem, factor: float) -> Problem:
        """Return the problem in other units, ``s f(z / s)`` with ``s = factor``."""

    @abstractmethod
    def poisoned(self, problem: Problem, row: int, value: float, grace: int) -> Problem:
        """Return the problem with a row that gives ``value``, NaN or Inf, after ``grace`` finite evaluations or steps.

        For a chain ``grace`` is the number of the step that gives ``value``, at most the last one.
        """

    @abstractmethod
    def counted(self, problem: Problem) -> tuple[Problem, Tally]:
        """Return the problem with a counter inside its function, and the counter."""

    @abstractmethod
    def raising(self, problem: Problem, error: Exception) -> Problem:
        """Return the problem with a function that raises ``error`` on its second call."""

    @abstractmethod
    def structured(self) -> Sequence[Float[Tensor, "B D"]]:
        """Solve one function on a tensor, and on tuples and dicts of its pieces; return the states found."""

    @abstractmethod
    def from_start(self, start: Float[Tensor, "B D"]) -> Solution:
        """Solve a contraction from the given start, which has the shape of :meth:`free_start`."""

    @abstractmethod
    def free_start(self) -> Float[Tensor, "B D"]:
        """Return a start for :meth:`from_start`."""


def require(holds: bool, detail: str) -> None:
    """Fail the check with ``detail`` unless ``holds``."""
    if not holds:
        raise CheckFailedError(detail)


def sound(solution: Solution, name: str) -> None:
    """Raise ``UnsoundError`` unless every row has a final status and the point is finite."""
    if not all(status != 0 for status in solution.status):
        raise UnsoundError(f"{name}: a row ended without a status")
    if not bool(solution.state.isfinite().all()):
        raise UnsoundError(f"{name}: the returned point is not finite")


def independent_error(problem: Problem, z: Float[Tensor, "B D"]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Compute the error and scale of a point independently: one more evaluation, plain norms, float64."""
    with torch.no_grad():
        fz = problem(z.clone())
    if isinstance(problem, HasMeasure):
        measure = problem.measure(z, fz, fz - z)
        return measure.error.amax(dim=1), measure.scale.amax(dim=1)
    norm = torch.linalg.vector_norm
    return norm((fz - z).double(), dim=1), norm(fz.double(), dim=1)
