"""Runs one solver on one map from one start, counts the calls of ``f``, and judges the returned point by itself.

An evaluation is a call of ``f``, whatever its purpose: line searches, differences and products with the Jacobian count.
A point is a solution where ``||f(z) - z|| <= tolerance ||z||``, with a slack of a thousandth for solvers that divide by
``||f(z)||``. What a solver says of its own result decides nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from map_suite import Map, relative_residual
from map_suite.suite import Vector

import fixedpoint

__all__ = ["MOST", "TOLERANCES", "Cell", "Counter", "SpentError", "of_ours", "of_peer"]

TOLERANCES = (1e-6, 1e-10)
MOST = 2000
_SLACK = 1.001

Peer = Callable[[Callable[[Vector], Vector], Vector], object]
"""A solver of another library: takes a map of vectors and a start, and iterates until it gives up."""


class SpentError(BaseException):
    """Ends a solve whose evaluations are used up or not needed; no solver may take it for an error of ``f``."""


@dataclass(frozen=True)
class Cell:
    """The evaluations to a solution, or None; then ``outcome`` says what happened instead."""

    evaluations: int | None
    outcome: str = "solved"

    def __str__(self) -> str:
        return self.outcome if self.evaluations is None else str(self.evaluations)


class Counter:
    """Counts the calls of a function, and ends the solve before one that is over the limit."""

    def __init__(self, f: Callable[[Any], Any], limit: int = MOST) -> None:
        self.f, self.limit, self.calls = f, limit, 0

    def __call__(self, z: Any) -> Any:
        if self.calls == self.limit:
            raise SpentError
        self.calls += 1
        return self.f(z)


def of_ours(solver: Any, made: Map, start: str, tolerance: float) -> Cell:
    """A solver of this library with this tolerance as its ``rtol``, called on the map as its users would call it."""
    counter = Counter(made.f)
    begin = made.start(start)
    try:
        with warnings.catch_warnings(), torch.no_grad(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            solution = fixedpoint.solve(counter, begin, solver=solver, rtol=tolerance, max_rounds=MOST)
    except SpentError:
        return Cell(None, "spent")
    except (ArithmeticError, ValueError, TypeError, np.linalg.LinAlgError) as error:
        return Cell(None, f"raised {type(error).__name__} at {counter.calls}")
    z = np.atleast_1d(np.asarray(solution.z, dtype=np.float64))
    if relative_residual(made.vector, z) <= _SLACK * tolerance:
        return Cell(counter.calls)
    label = solution.status[0].label
    return Cell(None, f"{'false claim' if solution.converged.all() else label} at {counter.calls}")


class _Observed(Counter):
    """Keeps the number of the first call whose argument is a solution to each tolerance; ends after the last one."""

    def __init__(self, f: Callable[[Vector], Vector]) -> None:
        super().__init__(f)
        self.reached: list[int | None] = [None] * len(TOLERANCES)

    def __call__(self, z: Vector) -> Vector:
        value: Vector = super().__call__(z)
        defect, size = float(np.linalg.norm(value - z)), float(np.linalg.norm(z))
        if math.isfinite(defect + size) and (size > 0 or defect == 0):
            for index, tolerance in enumerate(TOLERANCES):
                if self.reached[index] is None and defect <= _SLACK * tolerance * size:
                    self.reached[index] = self.calls
        if self.reached[-1] is not None:
            raise SpentError
        return value


def of_peer(peer: Peer, made: Map, start: str) -> tuple[Cell, ...]:
    """A solver of another library, for every tolerance: the first call of ``f`` at a solution.

    That favours these solvers: they need not notice that they are done.
    """
    observed = _Observed(made.vector)
    ended = "gave up"
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"), torch.no_grad():
            warnings.simplefilter("ignore")
            peer(observed, np.atleast_1d(np.asarray(made.start(start), dtype=np.float64)))
    except SpentError:
        ended = "spent"
    except Exception as error:  # whatever another library may raise is its failure, not that of this script
        ended = "spent" if observed.calls == MOST else f"raised {type(error).__name__}"
    told = ended if ended == "spent" else f"{ended} at {observed.calls}"
    return tuple(Cell(count) if count is not None else Cell(None, told) for count in observed.reached)
