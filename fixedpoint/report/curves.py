"""Computes the error of each solver against rounds, from the traces in the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fixedpoint.report.reading import Entry, Group

__all__ = ["Curve", "curves_of", "solvers_with_curve"]

_TRACE = "trace.relative_error"
_ROUNDS = f"{_TRACE}.rounds"


@dataclass(frozen=True)
class Curve:
    """The errors of one solver on one task.

    Attributes
    ----------
    solver
        Label of the solver.
    worst, best
        Shape ``(rounds,)``: the largest and smallest relative error over the rows of all seeds. A row that has
        finished keeps its last error. NaN where no error is known.
    rounds
        Number of rounds it took, the maximum over the seeds.
    """

    solver: str
    worst: NDArray[np.float64]
    best: NDArray[np.float64]
    rounds: int

    @property
    def drawable(self) -> bool:
        """Whether there is a line to draw, which takes at least two positive errors on the logarithmic scale."""
        return int((self.worst > 0).sum()) > 1


def curves_of(group: Group) -> list[Curve]:
    """Return the curve of every solver that has a record with a result, in the order of the run."""
    solvers = dict.fromkeys(entry.cell.solver for entry in group.entries)
    curves = []
    for solver in solvers:
        entries = [e for e in group.entries if e.cell.solver == solver and e.record and e.record.status == "ok"]
        if entries:
            curves.append(_curve(solver, entries))
    return curves


def solvers_with_curve(groups: Iterable[Group]) -> list[str]:
    """Return the labels of the solvers that have a line in at least one plot."""
    drawn = [curve.solver for group in groups for curve in curves_of(group) if curve.drawable]
    return list(dict.fromkeys(drawn))


def _curve(solver: str, entries: list[Entry]) -> Curve:
    rounds = max(entry.record.rounds for entry in entries if entry.record)
    traces = [_by_round(entry) for entry in entries if _TRACE in entry.arrays]
    length = max((len(trace) for trace in traces), default=0)
    if not length:
        nothing = np.empty(0)
        return Curve(solver, nothing, nothing, rounds)
    rows = np.concatenate([_filled(trace, length) for trace in traces], axis=1)
    known = np.isfinite(rows)
    worst = np.where(known, rows, -np.inf).max(axis=1)
    best = np.where(known, rows, np.inf).min(axis=1)
    shown = known.any(axis=1)
    return Curve(solver, np.where(shown, worst, np.nan), np.where(shown, best, np.nan), rounds)


def _by_round(entry: Entry) -> NDArray[np.float64]:
    """The trace of an entry, shape ``(n, B)``, as the last error known after each round, shape ``(rounds, B)``.

    Errors before the first known one are NaN. Records of earlier versions do not store the round of each error; these
    are read as one error per round.
    """
    trace = entry.arrays[_TRACE].astype(np.float64)
    if not trace.ndim or not trace.size:
        return np.empty((0, 1))
    trace = trace.reshape(len(trace), -1)
    rounds = entry.record.rounds if entry.record else len(trace)
    after = np.maximum(entry.arrays.get(_ROUNDS, np.minimum(np.arange(1, len(trace) + 1), rounds)), 1)
    by_round = np.full((int(after.max()), trace.shape[1]), np.nan)
    for round, errors in zip(
        after, trace, strict=True
    ):  # a round may have several errors; those of a row that ended at an earlier one are NaN
        by_round[round - 1] = np.where(np.isnan(errors), by_round[round - 1], errors)
    return by_round


def _filled(trace: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """A trace ``(rounds, B)`` extended to ``length`` rounds; NaN is replaced by the last value before it, if any."""
    filled = np.full((length, trace.shape[1]), np.nan)
    filled[: len(trace)] = trace
    rounds = np.arange(length)[:, np.newaxis]
    known = np.maximum.accumulate(np.where(np.isnan(filled), 0, rounds), axis=0)
    return np.take_along_axis(filled, known, axis=0)
