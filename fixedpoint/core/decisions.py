"""What the loop makes of a verdict after a round: statuses, what is recorded of it, and what callbacks are told."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fixedpoint.core.counts import Decision
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.progress import Progress
from fixedpoint.core.status import Status
from fixedpoint.core.statuses import Statuses
from fixedpoint.core.subset import RowSubset
from fixedpoint.core.termination import Verdict

__all__ = ["RowRecord", "codes_of", "decision", "progress_of"]


class RowRecord:
    """Which rows of a solve run, and how the others ended. It changes only where a row ends.

    Attributes
    ----------
    rounds
        Shape ``(B,)``, int64: the rounds that each row of the solve has run.
    indices
        Shape ``(k,)``, int64: the rows of the solve that are still held; compaction shortens this and ``running``.
    running
        Shape ``(k,)``, bool: which of these run.
    """

    def __init__(self, count: int) -> None:
        self.rounds = np.zeros(count, dtype=np.int64)
        self.indices = np.arange(count)
        self.running = np.ones(count, dtype=np.bool_)
        self._codes = np.zeros(count, dtype=np.int8)

    def end(self, codes: NDArray[np.int8], round: int) -> NDArray[np.bool_]:
        """Note the statuses of the rows that are held after a round; return those that have finished in it."""
        finished: NDArray[np.bool_] = self.running & (codes != Status.RUNNING)
        places = self.indices[finished]
        self.rounds[places], self._codes[places] = round, codes[finished]
        self.running = self.running & (codes == Status.RUNNING)
        return finished

    def compact(self) -> NDArray[np.int64]:
        """Hold only the rows that run; return which of those held before these are."""
        chosen = np.flatnonzero(self.running)
        self.indices, self.running = self.indices[chosen], self.running[chosen]
        return chosen

    @property
    def statuses(self) -> Statuses:
        """How every row ended."""
        return Statuses(self._codes)


def codes_of(
    verdict: Verdict, exhausted: NDArray[np.bool_] | None, f: Evaluator, limit: int, rows: int
) -> NDArray[np.int8] | None:
    """Return the statuses of all rows after a round; None where none ends.

    Rows for which the solver knows no further step are stalled, and the limit ends all that are still running.
    """
    over = f.counts.rounds >= limit
    if verdict.status is None and not over and (exhausted is None or not exhausted.any()):
        return None
    codes = verdict.codes(rows)
    if exhausted is not None:
        codes = np.where((codes == Status.RUNNING) & exhausted, np.int8(Status.STALLED), codes)
    if over:
        codes = np.where(codes == Status.RUNNING, np.int8(Status.MAX_ROUNDS), codes)
    return codes


def decision(running: NDArray[np.bool_], kept: NDArray[np.bool_] | None, again: NDArray[np.int8] | None) -> Decision:
    """Return what was decided, for estimators that repeat the steps."""
    none = np.zeros(len(running), dtype=np.int8)
    begun = none if again is None else again
    return Decision(none > 0 if kept is None else kept, running, begun == 2, begun > 0)


def progress_of(f: Evaluator, part: RowSubset | None, running: NDArray[np.bool_], at: Evaluated) -> Progress:
    """Report on all rows of the solve, also where the loop holds only some of them."""
    evaluations = f.counts.evaluations.copy() if part is None else part.evaluations
    latest = at.fz if part is None else part.widened(at.fz)
    return Progress(f.counts.rounds, int(running.sum()), _worst(f), evaluations, latest)


def _worst(f: Evaluator) -> float:
    """Return the largest relative error of the last point; NaN, a finished row, counts as zero."""
    return float(np.nan_to_num(f.relative[-1], nan=0.0, posinf=np.inf).max())
