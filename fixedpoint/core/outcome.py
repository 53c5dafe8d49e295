"""The solution of a solve, built from the point that was judged last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.point import Point
from fixedpoint.core.problem import FunctionProblem, HasSamples, Problem
from fixedpoint.core.solution import Solution, Trace
from fixedpoint.core.status import Status

__all__ = ["solution_at"]


def solution_at(
    at: Point,
    status: Sequence[Status],
    rounds: NDArray[np.int64],
    f: Evaluator,
    solver: Any,
    extras: dict[str, Any] | None = None,
) -> Solution:
    """Build the solution for a judged point; also for solvers that own their loop.

    Parameters
    ----------
    at
        The point, with its error and scale.
    status
        Of every row.
    rounds
        Shape ``(B,)``, int64: rounds that each row was running.
    f
        The evaluator of the solve, whose counts, trace and layout the solution gets.
    solver
        Stored as ``solution.solver``.
    extras
        Stored as ``solution.extras``.
    """
    return Solution(
        state=at.z,
        fstate=at.fz,
        error=at.error,
        scale=at.scale,
        status=status,
        rounds=rounds,
        counts=f.counts,
        trace=Trace(error=np.array(f.errors), relative=np.array(f.relative), rounds=np.array(f.judged_after)),
        solver=solver,
        layout=f.layout,
        extras=extras or {},
        notes=_notes(f.problem, status),
        sample_map=f.problem.sample_map() if isinstance(f.problem, HasSamples) else None,
    )


def _notes(problem: Problem, status: Sequence[Status]) -> dict[int, str]:
    """Return what else is known of rows that are nonfinite: which exceptions stood for NaN."""
    if not isinstance(problem, FunctionProblem) or not problem.undefined:
        return {}
    raised = ", ".join(f"{error} ({times} times)" for error, times in problem.undefined.items())
    said = f"{Status.NONFINITE.sentence}. It raised {raised}"
    return {row: said for row, code in enumerate(status) if code is Status.NONFINITE}
