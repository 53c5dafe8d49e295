"""Mutants that run a loop of their own, or alter the result of a sound one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.outcome import solution_at
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Claim, Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Termination
from fixedpoint.solvers.picard import Picard

OnRound = Callable[[Progress], None] | None


@dataclass(frozen=True)
class _Spoiled(Solver):
    """Picard iteration; the mutants alter its termination or its solution."""

    def solve(
        self, f: Evaluator, z0: Float[Tensor, "B D"], termination: Termination, on_round: OnRound = None
    ) -> Solution:
        return self.spoil(Picard().solve(f, z0, self.altered(termination), on_round))

    def altered(self, termination: Termination) -> Termination:
        """Return the stopping rule that it uses in place of the caller's."""
        return termination

    def spoil(self, solution: Solution) -> Solution:
        """Return the altered solution."""
        return solution


@dataclass(frozen=True)
class ReturnsTheImage(_Spoiled):
    """Returns f(z) with the error of z."""

    def spoil(self, solution: Solution) -> Solution:
        return replace(solution, state=solution.fstate)


@dataclass(frozen=True)
class LoosensTheTolerance(_Spoiled):
    """Stops at three times the tolerance."""

    def altered(self, termination: Termination) -> Termination:
        return replace(termination, rtol=3 * termination.rtol)


@dataclass(frozen=True)
class GoesOn(_Spoiled):
    """Ignores the limit on rounds."""

    def altered(self, termination: Termination) -> Termination:
        return replace(termination, max_rounds=None)


@dataclass(frozen=True)
class CallsItDiverged(_Spoiled):
    """Reports NaN as divergence."""

    def spoil(self, solution: Solution) -> Solution:
        status = tuple(Status.DIVERGED if s is Status.NONFINITE else s for s in solution.status)
        return replace(solution, status=status)


@dataclass(frozen=True)
class WrapsExceptions(_Spoiled):
    """Wraps every exception of the function in an error of its own."""

    def solve(
        self, f: Evaluator, z0: Float[Tensor, "B D"], termination: Termination, on_round: OnRound = None
    ) -> Solution:
        try:
            return super().solve(f, z0, termination, on_round)
        except Exception as error:
            raise RuntimeError("the solve failed") from error


@dataclass(frozen=True)
class SwallowsExceptions(_Spoiled):
    """Returns the best point so far when the function raises."""

    def solve(
        self, f: Evaluator, z0: Float[Tensor, "B D"], termination: Termination, on_round: OnRound = None
    ) -> Solution:
        try:
            return super().solve(f, z0, termination, on_round)
        except Exception:
            assert f.best is not None  # the first evaluation succeeded
            return _ended(self, f, f.best, Status.STALLED)


@dataclass(frozen=True)
class ReturnsTheLast(Solver):
    """Returns the last point with the error of the best, NaN or not."""

    def solve(
        self, f: Evaluator, z0: Float[Tensor, "B D"], termination: Termination, on_round: OnRound = None
    ) -> Solution:
        at = f(z0)
        for _ in range(_limit(termination) - 1):
            at = f(at.fz)
        assert f.best is not None  # every evaluation has been remembered
        return _ended(self, f, replace(at, error=f.best.error), Status.MAX_ROUNDS)


@dataclass(frozen=True)
class CountsItselfConverged(Solver):
    """Reports convergence after at most thirty rounds, whatever the error."""

    def solve(
        self, f: Evaluator, z0: Float[Tensor, "B D"], termination: Termination, on_round: OnRound = None
    ) -> Solution:
        at = f(z0)
        for _ in range(min(_limit(termination), 30) - 1):
            at = f(torch.where(at.fz.isfinite(), at.fz, at.z).clamp(-1e3, 1e3))
        assert f.best is not None  # every evaluation has been remembered
        return _ended(self, f, f.best, Status.CONVERGED)


@dataclass(frozen=True)
class ClaimsTooLittle(_Spoiled):
    """Reports half the residual of the point it returns."""

    def spoil(self, solution: Solution) -> Solution:
        return replace(solution, extras={"claimed": _claim(solution, share=0.5)})


@dataclass(frozen=True)
class ClaimsTheLimit(_Spoiled):
    """Claims that all rows converged, including those the limit on rounds cut short."""

    def spoil(self, solution: Solution) -> Solution:
        claim = replace(_claim(solution), converged=np.ones(len(solution.status), dtype=np.bool_))
        return replace(solution, extras={"claimed": claim})


@dataclass(frozen=True)
class KeepsTheLast(Solver):
    """Returns its last point, correctly judged, though earlier ones were better."""

    def solve(
        self, f: Evaluator, z0: Float[Tensor, "B D"], termination: Termination, on_round: OnRound = None
    ) -> Solution:
        at = f(z0)
        for _ in range(_limit(termination) - 1):
            at = f(at.fz)
        return _ended(self, f, at, Status.MAX_ROUNDS)


@dataclass(frozen=True)
class AllocatesAhead(_Spoiled):
    """Allocates memory for all the rounds it might take."""

    def altered(self, termination: Termination) -> Termination:
        torch.empty(termination.max_rounds or 1000, 256, dtype=torch.float64)
        return termination


@dataclass(frozen=True)
class TestsTheRelaxedStep(Solver):
    """Applies the tolerance to the relaxed step, which is short if the relaxation is small."""

    relaxation: float = option(1.0, gt=0.0, le=2.0, help="how far to go towards f(z)")

    def solve(
        self, f: Evaluator, z0: Float[Tensor, "B D"], termination: Termination, on_round: OnRound = None
    ) -> Solution:
        at = f(z0)
        for _ in range(_limit(termination) - 1):
            if bool((self.relaxation * at.error <= termination.rtol * at.scale).all()):
                break
            at = f(at.z + self.relaxation * at.residual)
        return _ended(self, f, at, Status.CONVERGED)


def _claim(solution: Solution, share: float = 1.0) -> Claim:
    residual = share * (solution.error / solution.scale).amax(dim=1).numpy()
    return Claim(solution.converged, residual, relative=True, tolerance=1e-4)


def _limit(termination: Termination) -> int:
    return min(termination.max_rounds or 200, 400)


def _ended(solver: Solver, f: Evaluator, at: Evaluated, status: Status) -> Solution:
    rounds = np.full(len(at.z), f.counts.rounds, dtype=np.int64)
    return solution_at(at, (status,) * len(at.z), rounds, f, solver)
