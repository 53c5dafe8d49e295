"""The stopping rule: when a row has converged, and when it is stopped without."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from fixedpoint.core.options import OptionError, Options, option
from fixedpoint.core.pace import Pace
from fixedpoint.core.point import Evaluated
from fixedpoint.core.runaway import Origin, Runaway
from fixedpoint.core.status import Status
from fixedpoint.core.yardstick import Yardstick

__all__ = ["Judge", "Termination", "at_rounding_floor"]

# Rounding of f moves the residual by a few units in the last place. An error below this many units is noise.
_FLOOR = 16.0
# A row whose error is at that floor is stalled after this many rounds without progress.
_FLOOR_PATIENCE = 5
# A row may go without progress for this fraction of all rounds so far: a slow iteration in a coarse dtype repeats an
# error for many rounds before it falls by one more unit in the last place, and for more rounds the longer it has run.
_WAIT = 0.25
# An error that rose, or fell, in this many consecutive rounds follows a trend, not chance.
_ONE_WAY = 8
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


def at_rounding_floor(
    error: Float[Tensor, "B blocks"], scale: Float[Tensor, "B blocks"], eps: float
) -> Bool[Tensor, " B"]:
    """Whether the error of each row is within 16 units of rounding of a dtype with machine precision ``eps``."""
    return (error <= _FLOOR * eps * scale).all(dim=1)


class Judge:
    """Applies a :class:`Termination` to the evaluated points of one solve, row by row, without leaving the device.

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
        self._history: _RowHistory | None = None
        self._runaway: Runaway | None = None

    def __call__(self, at: Evaluated) -> tuple[Int8[Tensor, " B"], Int8[Tensor, " B"]]:
        """Judge a point.

        Returns
        -------
        status
            Shape ``(B,)``, int8: a :class:`.Status` for every row.
        again
            Shape ``(B,)``, int8: 2 for rows that are not finite at this point and must go back to their best finite
            point, where their solver begins anew; 1 for rows whose solver must begin anew at this point, as they were
            rescued some rounds ago.
        """
        self._points += 1
        progress = self.yardstick.progress(at.error, at.scale)
        self._history = (
            _RowHistory.begin(at, progress) if self._history is None else self._history.updated(at, progress)
        )
        # A problem that says itself which rows are settled need not measure by the size of the state.
        if self._tests_runaway and at.settled is None:
            if self._runaway is None:
                self._runaway = Runaway.begin(at, self._origin, self._eps)
            else:
                self._runaway = self._runaway.updated(at, self._eps)
        known = self._history
        status = torch.full_like(known.waited, Status.RUNNING, dtype=torch.int8)
        if not self.has_fixed_length:
            status = status.masked_fill(self._stalled(at), Status.STALLED)
            status = status.masked_fill(self._diverged(at, progress), Status.DIVERGED)
        if self.pace is not None:
            self.pace = self.pace.updated(self.yardstick.in_tolerances(at.error, at.scale))
            status = status.masked_fill((status == Status.RUNNING) & self.pace.slow, Status.STALLED)
        lost = known.broken > self._rescues
        # Converged comes last, so that it overrides every other status.
        status = status.masked_fill(lost, Status.NONFINITE).masked_fill(self.within(at), Status.CONVERGED)
        again = (known.plain > 0).to(torch.int8) + (~at.finite).to(torch.int8)
        return status, again.masked_fill(lost, 0)

    def tolerance(self, at: Evaluated) -> Float[Tensor, "B m"]:
        """Return the largest error that is accepted."""
        if self.yardstick.fine:
            return self.yardstick.tolerance(at.scale)
        start = None if self._history is None or self.termination.relative_to == "state" else self._history.first
        return self.termination.atol + self.termination.rtol * (at.scale if start is None else start)

    def within(self, at: Evaluated) -> Bool[Tensor, " B"]:
        """Whether each row has converged: all blocks within the tolerance, settled, and not running away."""
        small = at.error <= self.tolerance(at)
        if self._runaway is None:
            sure = torch.ones_like(small)
        else:
            # At a state of zero an error of 0 is exact, f(0) = 0, however the state has come there.
            exact = at.error + at.scale == 0.0
            sure = exact | ~self._runaway.doubts(at.error <= _FLOOR * self._eps * at.scale)
        if at.settled is not None:
            sure = sure & at.settled.unsqueeze(1)
        # Elsewhere an atol of 0 exempts nothing, not even an error of 0, which may be an underflow.
        atol = self.yardstick.atol
        if isinstance(atol, Tensor) or atol > 0.0:
            sure = sure | ((at.error <= atol) & torch.as_tensor(atol > 0.0, device=at.error.device))
        return at.finite & (small & sure).all(dim=1)

    def select_rows(self, take: Callable[[Any], Any]) -> Judge:
        """Return the judge of some of the rows; ``take`` selects these rows of every tensor it is given."""
        part = copy.copy(self)
        part._history, part._runaway, part.pace = take((self._history, self._runaway, self.pace))
        return part

    def _diverged(self, at: Evaluated, progress: Float[Tensor, "B k"]) -> Bool[Tensor, " B"]:
        """Whether the error has grown by the factor ``divergence`` over the first one, and is large at all."""
        assert self._history is not None
        if self.yardstick.fine:  # progress is then the logarithm of the error in units of its tolerance
            return at.finite & (progress[:, 0] > self._history.begun + math.log(self.termination.divergence))
        # Growth alone proves nothing: from a start that is nearly a fixed point, the first error is tiny, and an error
        # of the size of the state is a large multiple of it.
        far = (at.error > _BOUNDED_MAP_FACTOR * self._history.scale) & (at.error > _DIVERGING_SHARE * at.scale)
        return at.finite & ((at.error > self.termination.divergence * self._history.first) & far).any(dim=1)

    def _stalled(self, at: Evaluated) -> Bool[Tensor, " B"]:
        """Whether a row has made no progress for too long; at the rounding floor five rounds are enough."""
        assert self._history is not None
        at_floor = at_rounding_floor(at.error, at.scale, self._eps)
        patience = self.termination.patience
        long = max(patience, int(_WAIT * self._points))
        return at.finite & (self._history.waited >= torch.where(at_floor, min(_FLOOR_PATIENCE, patience), long))


@dataclass(frozen=True)
class _RowHistory:
    """What a judge stores of every row.

    "Number" is the first column of ``Yardstick.progress``, by which points are compared.

    Attributes
    ----------
    first, scale
        Shape ``(B, blocks)``: the first error and the first scale.
    low
        Shape ``(B, k)``: the smallest value of each column of ``Yardstick.progress`` since the largest number.
    begun, best, high, last
        Shape ``(B,)``: the first, the smallest, the largest and the latest number.
    run
        Shape ``(B,)``: for how many points the number has risen, or fallen where negative, without a turn.
    waited
        Shape ``(B,)``: points without progress.
    broken
        Shape ``(B,)``: points that were not finite since the best one; infinite if no rescue can help, since the start
        is not finite or a plain step led out of the domain.
    plain
        Shape ``(B,)``: plain steps that are left of the last rescue.
    """

    first: Float[Tensor, "B blocks"]
    scale: Float[Tensor, "B blocks"]
    low: Float[Tensor, "B k"]
    begun: Float[Tensor, " B"]
    high: Float[Tensor, " B"]
    best: Float[Tensor, " B"]
    last: Float[Tensor, " B"]
    run: Float[Tensor, " B"]
    waited: Float[Tensor, " B"]
    broken: Float[Tensor, " B"]
    plain: Float[Tensor, " B"]

    @staticmethod
    def begin(at: Evaluated, progress: Float[Tensor, "B k"]) -> _RowHistory:
        """Return what is stored after the first point."""
        error = progress[:, 0]
        broken = torch.where(at.finite, 0.0, torch.inf).to(error)  # a start that is not finite cannot be rescued
        one = torch.ones_like(error)
        none = torch.zeros_like(error)
        return _RowHistory(at.error, at.scale, progress, error, error, error, error, none, one, broken, none)

    def updated(self, at: Evaluated, progress: Float[Tensor, "B k"]) -> _RowHistory:
        """Return what is stored after a further point."""
        error = progress[:, 0]
        better, higher = at.finite & (error < self.best), at.finite & (error > self.high)
        lower = at.finite & (progress < self.low).any(dim=1)
        up = (error > self.last).to(error) - (error < self.last).to(error)
        run = torch.where(up * self.run >= 0, self.run, 0.0) * up.abs() + up
        moved = lower | higher | (at.finite & (run.abs() >= _ONE_WAY))
        low = torch.where(at.finite.unsqueeze(1), torch.minimum(progress, self.low), self.low)
        # A plain step from a rescued row that is not finite, either, would be repeated for ever.
        broken = torch.where(better & (self.plain == 0), 0.0, self.broken)
        broken = torch.where(at.finite, broken, torch.where(self.plain > 0, torch.inf, broken + 1.0))
        plain = torch.where(at.finite, (self.plain - 1.0).clamp(min=0.0), torch.exp2(broken) - 1.0)
        return _RowHistory(
            first=self.first,
            scale=self.scale,
            begun=self.begun,
            low=torch.where(higher.unsqueeze(1), progress, low),
            high=torch.where(higher, error, self.high),
            best=torch.where(better, error, self.best),
            last=error,
            run=run,
            waited=torch.where(moved, 0.0, self.waited + 1.0),
            broken=broken,
            plain=plain,
        )
