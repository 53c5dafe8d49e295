"""The stopping rule: when a row has converged, and when it is stopped without."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fixedpoint.core.options import OptionError, Options, option
from fixedpoint.core.pace import Pace
from fixedpoint.core.point import Numbers
from fixedpoint.core.row_history import Measured, RowHistory
from fixedpoint.core.runaway import Origin, Runaway
from fixedpoint.core.small import Number, Truth, any_row, every, some, where
from fixedpoint.core.status import Status
from fixedpoint.core.yardstick import Yardstick

__all__ = ["Judge", "Termination", "Verdict", "at_rounding_floor"]

# Rounding of f moves the residual by a few units in the last place. An error below this many units is noise.
_FLOOR = 16.0
# A row whose error is at that floor is stalled after this many rounds without progress.
_FLOOR_PATIENCE = 5
# A row may go without progress for this fraction of all rounds so far: a slow iteration in a coarse dtype repeats an
# error for many rounds before it falls by one more unit in the last place, and for more rounds the longer it has run.
_WAIT = 0.25
# A row has diverged only if its error exceeds this multiple of the first scale, which a bounded map does not reach, and
# this fraction of the current scale, which the error of a diverging map does not fall below.
_BOUNDED_MAP_FACTOR, _DIVERGING_SHARE = 4.0, 1e-3
# A row whose point is not finite goes back to its best point and takes 2^k - 1 plain steps, k = 1, 2, ..., this many
# times at most before it is lost.
_RESCUES = 6
# The test for running away applies to relative tolerances up to this one. With a looser tolerance, a state that starts
# at zero may still be growing when it is accurate enough.
_LOOSE = 1e-2


@dataclass(frozen=True)
class Termination(Options):
    """The stopping rule, applied to each row of the problem itself, never to a relaxed step.

    A row converges when ``error <= atol + rtol * scale`` holds in every one of its blocks. For plain problems
    ``error = ||f(z) - z||`` and ``scale = ||f(z)||``. With ``per`` the norms are those of the whole row, of every
    tensor of the state or of every entry, for states whose parts differ by orders of magnitude. A problem may
    have its own measure.

    Raises
    ------
    OptionError
        If an option is out of range, or if ``per`` is not ``"row"`` while ``relative_to`` is ``"start"``.
    """

    rtol: float = option(1e-6, ge=0.0, lt=1.0, help="relative tolerance")
    atol: float = option(0.0, ge=0.0, help="absolute tolerance; required where the solution may be zero")
    max_rounds: int | None = option(None, ge=1, help="limit on rounds; by default the solver's own bound, else 1000")
    norm: Literal["l2", "rms", "max"] = option("l2", help="norm of the residual")
    per: Literal["row", "leaf", "entry"] = option(
        "row", help="what is held against its tolerance: the norm of a whole row, of each tensor of it, or each entry"
    )
    relative_to: Literal["state", "start"] = option(
        "state", help="what rtol is relative to: the size of the state, or the first error"
    )
    patience: int = option(
        50,
        ge=1,
        help="rounds without progress after which a row is stalled, or a quarter of all rounds if that is more",
    )
    divergence: float = option(1e8, gt=1.0, help="growth of the error over its first value that means divergence")

    def check(self) -> None:
        if self.per != "row" and self.relative_to == "start":
            raise OptionError("Termination", "per", f"must be 'row' where relative_to is 'start', got {self.per!r}")

    @property
    def yardstick(self) -> Yardstick:
        """The norms and tolerances of this rule."""
        return Yardstick(self.norm, self.per, self.rtol, self.atol)


def at_rounding_floor(error: Any, scale: Any, eps: float) -> Any:
    """Whether the error of each row is within 16 units of rounding of a dtype with machine precision ``eps``.

    Error and scale are arrays or tensors of shape ``(B, m)``, and so is what is returned, of shape ``(B,)``.
    """
    return (error <= _FLOOR * eps * scale).all(1)


class Verdict(NamedTuple):
    """What a judge says of a point.

    Attributes
    ----------
    status
        Shape ``(B,)``, int8: a :class:`.Status` for every row; None where all rows are running.
    again
        Shape ``(B,)``, int8: 2 for rows that are not finite at this point and must go back to their best finite point,
        where their solver begins anew; 1 for rows whose solver must begin anew at this point, as they were rescued some
        rounds ago. None where there are none of either.
    """

    status: NDArray[np.int8] | None
    again: NDArray[np.int8] | None

    def codes(self, rows: int) -> NDArray[np.int8]:
        """Return the statuses of all rows."""
        return np.zeros(rows, dtype=np.int8) if self.status is None else self.status


class Judge:
    """Applies a :class:`Termination` to the evaluated points of one solve, row by row, on the host.

    A row is **stalled** when it makes no progress for ``patience`` rounds, and for a quarter of all rounds if that is
    more. A point is progress if its error is smaller than any since the largest one, or larger than any before, or if
    the error has risen, or fallen, for eight consecutive rounds: errors of a growth model, or of an EM iteration that
    leaves a saddle, rise for many rounds before they fall. An error that cycles or wanders changes direction sooner,
    and sets new records ever more rarely.

    A row is **converged** when it is within its tolerance. Two things prevent that: the row has run away
    (:class:`Runaway`; tested where ``rtol`` is at most 1e-2), or the problem's own measure says that the row is not
    ``settled``. Neither applies to a row within the absolute tolerance.

    A row that leaves the domain of ``f`` is **rescued**: it goes back to its best point, and its solver begins anew
    there, which is a plain step for the solvers that have a history. Where the error rises before it falls, the best
    point is the start, and the first secants lead out of the domain again: each further rescue, as long as there is no
    better point, is therefore followed by twice as many plain steps as the last. A row is **nonfinite** when a plain
    step leaves the domain, too, or after six rescues.

    Parameters
    ----------
    termination
        The rule.
    dtype
        Of the state.
    has_fixed_length
        The solver ends after a known number of rounds. Its error may grow first, so the judge tests for neither
        stalling nor divergence nor running away.
    can_restart
        Whether the solver has a history to forget. Otherwise it would take the same steps again, so that nothing is
        rescued.
    affine
        The solver assumes an affine map and may take one long step to a solution far away, so the judge does not test
        for running away.
    origin
        The first error and scale of the earlier solve that this one continues.
    yardstick
        That of the evaluator, which holds the tolerances of every tensor or entry where there are several. By default
        the termination's.
    pace
        Rows slower than this are stalled, too; None: however slow they are, they go on.
    """

    def __init__(
        self,
        termination: Termination,
        dtype: torch.dtype,
        has_fixed_length: bool = False,
        affine: bool = False,
        can_restart: bool = True,
        origin: Origin | None = None,
        yardstick: Yardstick | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.termination = termination
        self.yardstick = yardstick or termination.yardstick
        self.has_fixed_length = has_fixed_length
        self._rescues = _RESCUES if can_restart and not has_fixed_length else 0
        self._tests_runaway = (
            not has_fixed_length and not affine and termination.relative_to == "state" and termination.rtol <= _LOOSE
        )
        self._origin = origin
        self._eps = torch.finfo(dtype).eps
        self._points = 0
        self.pace = pace
        self._least_patience = min(_FLOOR_PATIENCE, termination.patience)
        self._history: RowHistory | None = None
        self._runaway: Runaway | None = None

    def __call__(self, numbers: Numbers) -> Verdict:
        """Judge a point by its numbers."""
        self._points += 1
        at = Measured.of(numbers)
        if at.finite.__class__ is bool:  # floats warn of nothing
            return self._judged(numbers, at)
        with np.errstate(all="ignore"):
            return self._judged(numbers, at)

    def _judged(self, numbers: Numbers, at: Measured) -> Verdict:
        progress, rows = self._progress(numbers, at), len(numbers.finite)
        known = self._history
        if known is None:
            known = self._history = RowHistory.begin(at, progress)
        else:
            known.update(at, progress)
        # A problem that says itself which rows are settled need not measure by the size of the state.
        if self._tests_runaway and at.settled is None:
            if self._runaway is None:
                self._runaway = Runaway.begin(at, self._origin, self._eps)
            else:
                self._runaway.update(at, self._eps)
        lost = known.broken > self._rescues
        ends: list[tuple[Truth, Status | None]] = []
        if not self.has_fixed_length:
            ends = [(self._stalled(at), Status.STALLED), (self._diverged(at, progress), Status.DIVERGED)]
        if self.pace is not None:
            ends.append((self._slow(numbers, at), None))
        # Converged comes last, so that it overrides every other status.
        ends += [(lost, Status.NONFINITE), (self._within(at), Status.CONVERGED)]
        return Verdict(_status(ends, rows), _again(at, known, lost, rows))

    def tolerance(self, numbers: Numbers) -> NDArray[np.float64]:
        """Return the largest error that is accepted, shape ``(B, m)``."""
        found: NDArray[np.float64] = np.zeros_like(numbers.scale) + self._tolerance(numbers.scale)
        return found

    def within(self, numbers: Numbers) -> Truth:
        """Whether each row has converged: all blocks within the tolerance, settled, and not running away.

        Returns
        -------
        bool or array
            Shape ``(B,)``; a bool for a single row of one block.
        """
        with np.errstate(all="ignore"):
            return self._within(Measured.of(numbers))

    def select_rows(self, rows: NDArray[np.int64]) -> Judge:
        """Return the judge of some of the rows."""
        part = copy.copy(self)
        part._history = None if self._history is None else self._history.take(rows)
        part._runaway = None if self._runaway is None else self._runaway.take(rows)
        part.pace = None if self.pace is None else self.pace.take(rows)
        return part

    def _progress(self, numbers: Numbers, at: Measured) -> tuple[Number, ...]:
        """Return the numbers of which one falls as long as a row makes progress."""
        if not self.yardstick.fine and at.finite.__class__ is bool:
            return (at.error,)
        return self.yardstick.progress(numbers.error, numbers.scale)

    def _tolerance(self, scale: Number) -> Any:
        if self.yardstick.fine:
            return self.yardstick.tolerance(scale)
        start = None if self._history is None or self.termination.relative_to == "state" else self._history.first
        return self.termination.atol + self.termination.rtol * (scale if start is None else start)

    def _within(self, at: Measured) -> Truth:
        small, finite = at.error <= self._tolerance(at.scale), at.finite
        near = every(small) & finite
        if not some(near):
            return near
        sure: Any = at.error == at.error
        if self._runaway is not None:
            # At a state of zero an error of 0 is exact, f(0) = 0, however the state has come there.
            exact = at.error + at.scale == 0.0
            sure = exact | (self._runaway.doubts(at.error <= _FLOOR * self._eps * at.scale) ^ True)
        if at.settled is not None:
            sure = sure & (at.settled if at.settled.__class__ is bool else np.asarray(at.settled)[:, None])
        # Elsewhere an atol of 0 exempts nothing, not even an error of 0, which may be an underflow.
        sure = sure | ((at.error <= self.yardstick.atol) & (self.yardstick.atol > 0.0))
        return finite & every(small & sure)

    def _slow(self, numbers: Numbers, at: Measured) -> Truth:
        """Which rows are slower than the pace."""
        assert self.pace is not None
        if at.finite.__class__ is bool and not self.yardstick.fine:
            unit = self.yardstick.tolerance(at.scale)
            relative = at.error / (unit if unit > 0 else 1.0)
        else:
            relative = self.yardstick.in_tolerances(numbers.error, numbers.scale)
        self.pace = self.pace.updated(relative)
        return self.pace.slow

    def _diverged(self, at: Measured, progress: tuple[Number, ...]) -> Truth:
        """Whether the error has grown by the factor ``divergence`` over the first one, and is large at all."""
        known = self._history
        assert known is not None
        if self.yardstick.fine:  # progress is then the logarithm of the error in units of its tolerance
            return at.finite & (progress[0] > known.begun + math.log(self.termination.divergence))
        grown = at.error > self.termination.divergence * known.first
        if not some(grown):
            return False
        # Growth alone proves nothing: from a start that is nearly a fixed point, the first error is tiny, and an error
        # of the size of the state is a large multiple of it.
        far = (at.error > _BOUNDED_MAP_FACTOR * known.scale) & (at.error > _DIVERGING_SHARE * at.scale)
        return at.finite & any_row(grown & far)

    def _stalled(self, at: Measured) -> Truth:
        """Whether a row has made no progress for too long; at the rounding floor five rounds are enough."""
        assert self._history is not None
        waited = self._history.waited
        if not some(waited >= self._least_patience):
            return False
        at_floor = every(at.error <= _FLOOR * self._eps * at.scale)
        long = max(self.termination.patience, int(_WAIT * self._points))
        return at.finite & (waited >= where(at_floor, self._least_patience, long))


def _status(ends: Sequence[tuple[Truth, Status | None]], rows: int) -> NDArray[np.int8] | None:
    """Return the statuses, of which later ones override earlier ones; None where no row ends.

    ``None`` in place of a status stands for stalled, in rows that have no other yet.
    """
    if not any(some(ended) for ended, _ in ends):
        return None
    found = np.zeros(rows, dtype=np.int8)
    for ended, status in ends:
        chosen = ended if status is not None else ended & (found == Status.RUNNING)
        found[np.broadcast_to(chosen, rows)] = Status.STALLED if status is None else status
    return found


def _again(at: Measured, known: RowHistory, lost: Truth, rows: int) -> NDArray[np.int8] | None:
    """Return which rows begin anew."""
    plain, broken = known.plain > 0, at.finite ^ True
    if not some(plain | broken):
        return None
    found = np.broadcast_to(plain, rows).astype(np.int8) + np.broadcast_to(broken, rows)
    return np.where(lost, np.int8(0), found).astype(np.int8)
