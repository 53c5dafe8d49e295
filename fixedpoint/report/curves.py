"""Curves: the error of a solver against rounds, from the traces of its cells."""

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
    """One solver on one task.

    Attributes
    ----------
    worst, best
        Shape ``(rounds,)``: the largest and smallest relative error over the rows of all seeds. A row that has
        finished keeps its last error; NaN where there is nothing to show.
    rounds
        Rounds it took, the most over the seeds.
    """

    solver: str
    worst: NDArray[np.float64]
    best: NDArray[np.float64]
    rounds: int

    @property
    def drawable(self) -> bool:
        """Whether there is a line to draw: more than one positive point."""
        return int((self.worst > 0).sum()) > 1


def curves_of(group: Group) -> list[Curve]:
    """The curve of every solver that came to a result, in the order of the run."""
    solvers = dict.fromkeys(entry.cell.solver for entry in group.entries)
    curves = []
    for solver in solvers:
        entries = [e for e in group.entries if e.cell.solver == solver and e.record and e.record.status == "ok"]
        if entries:
            curves.append(_curve(solver, entries))
    return curves


def solvers_with_curve(groups: Iterable[Group]) -> list[str]:
    """The solvers that have a line in some plot."""
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
    """A trace ``(n, B)`` as ``(rounds, B)``: the last error known after every round, NaN before the first one.

    Records of earlier versions do not say after which round an error was known: one after every round, for all we know.
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
    ):  # a row that ended at an earlier look of a round keeps that one
        by_round[round - 1] = np.where(np.isnan(errors), by_round[round - 1], errors)
    return by_round


def _filled(trace: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """A trace ``(rounds, B)`` made ``length`` long, every NaN after the first value filled with the value before."""
    filled = np.full((length, trace.shape[1]), np.nan)
    filled[: len(trace)] = trace
    for index in range(1, length):
        filled[index] = np.where(np.isnan(filled[index]), filled[index - 1], filled[index])
    return filled
