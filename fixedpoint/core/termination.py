"""Termination: when a row is done, and when going on is pointless."""

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
from fixedpoint.core.point import Evaluated
from fixedpoint.core.runaway import Origin, Runaway
from fixedpoint.core.status import Status
from fixedpoint.core.yardstick import Yardstick

__all__ = ["Judge", "Termination", "at_rounding_floor"]

# Rounding of f moves the residual by a few units in the last place; below this many the error is noise.
_FLOOR = 16.0
# Rounds without progress after which a row whose error is at that floor is done for.
_FLOOR_PATIENCE = 5
# The part of all rounds so far that a row may go without progress: a slow iteration in a coarse dtype repeats an error
# for many rounds before it falls by one more unit in the last place, the more of them the longer it has taken.
_WAIT = 0.25
# Rounds in which an error has gone one way, after which that is no accident.
_ONE_WAY = 8
# Errors of more than this many times the first scale are not those of a bounded map; those below this part of the
# present one not those of a map that diverges.
_AT_HOME, _BESIDE = 4.0, 1e-3
# Relative tolerances above this are for a few digits' work, where a state from zero is still growing when it is enough.
_LOOSE = 1e-2


@dataclass(frozen=True)
class Termination(Options):
    """The stopping rule, judged per row on the problem itself, never on a relaxed step.

    A row converges when, in every one of its blocks, ``error <= atol + rtol * scale``. For plain problems
    ``error = ||f(z) - z||`` and ``scale = ||f(z)||``, of the whole row, or (``per``) of every tensor of the state or
    every entry by itself, for states that span magnitudes; a chain brings its own measure.
    """

    rtol: float = option(1e-6, ge=0.0, lt=1.0, help="relative tolerance")
    atol: float = option(0.0, ge=0.0, help="absolute tolerance; wanted where the solution may be zero")
    max_rounds: int | None = option(
        None, ge=1, help="limit on rounds; by default the solver's own bound (a chain: N + 1), else 1000"
    )
    norm: Literal["l2", "rms", "max"] = option("l2", help="norm of the residual")
    per: Literal["row", "leaf", "entry"] = option(
        "row", help="what is held against its tolerance: the norm of a whole row, of each tensor of it, or each entry"
    )
    relative_to: Literal["state", "start"] = option(
        "state", help="what rtol is relative to: the size of the state, or the first error"
    )
    patience: int = option(
        50, ge=1, help="rounds without progress after which a row is stalled; at least, and a quarter of all rounds"
    )
    divergence: float = option(1e8, gt=1.0, help="growth of the error over its first value that means divergence")

    def check(self) -> None:
        if self.per != "row" and self.relative_to == "start":
            raise OptionError("Termination", "per", f"must be 'row' where relative_to is 'start', got {self.per!r}")

    @property
    def yardstick(self) -> Yardstick:
        """What it measures in, and with which tolerances."""
        return Yardstick(self.norm, self.per, self.rtol, self.atol)


def at_rounding_floor(
    error: Float[Tensor, "B blocks"], scale: Float[Tensor, "B blocks"], eps: float
) -> Bool[Tensor, " B"]:
    """Whether all that is left of a row's error is rounding of a dtype with that ``eps``."""
    return (error <= _FLOOR * eps * scale).all(dim=1)


class Judge:
    """Applies a :class:`Termination` to the evaluated points of one solve, row by row, without leaving the device.

    **Stalled** is a row that makes no progress for ``patience`` rounds and a quarter of all rounds. Progress is an
    error smaller than any since the largest one, or larger than any before, or one that has gone one way, up or down,
    for eight rounds: errors of a growth model, or of an EM iteration that leaves a saddle, rise for many rounds before
    they fall. An error that goes round in a cycle or wanders about turns sooner, and sets records ever more rarely.

    **Converged** is a row within its tolerance, unless it has run away (:class:`Runaway`; where ``rtol`` is at most
    1e-2) or the problem's own measure says that it is not ``settled``. What is within the absolute tolerance needs
    neither.

    ``has_fixed_length=True`` is for solvers that end by themselves after a known number of rounds (chains): there the
    error may grow first, so neither stall nor divergence is concluded from it. ``origin``: the first error and scale of
    an earlier solve that is gone on with. ``yardstick``: that of the evaluator, which has the tolerances of every
    tensor or entry where there are several; by default the termination's. ``affine=True`` is for solvers that take the
    map for affine: they make one long step to a solution that may be far out.
    """

    def __init__(
        self,
        termination: Termination,
        dtype: torch.dtype,
        has_fixed_length: bool = False,
        affine: bool = False,
        origin: Origin | None = None,
        yardstick: Yardstick | None = None,
    ) -> None:
        self.termination = termination
        self.yardstick = yardstick or termination.yardstick
        self.has_fixed_length = has_fixed_length
        self._wary = (
            not has_fixed_length and not affine and termination.relative_to == "state" and termination.rtol <= _LOOSE
        )
        self._origin = origin
        self._eps = torch.finfo(dtype).eps
        self._points = 0
        self._known: _Known | None = None
        self._runaway: Runaway | None = None

    def __call__(self, at: Evaluated) -> tuple[Int8[Tensor, " B"], Bool[Tensor, " B"]]:
        """The status of every row, and the rows to be rescued: not finite now, but they have a finite point."""
        self._points += 1
        progress = self.yardstick.progress(at.error, at.scale)
        self._known = _Known.begin(at, progress) if self._known is None else self._known.seen(at, progress)
        if self._wary:
            if self._runaway is None:
                self._runaway = Runaway.begin(at, self._origin, self._eps)
            else:
                self._runaway = self._runaway.seen(at, self._eps)
        known = self._known
        status = torch.full_like(known.waited, Status.RUNNING, dtype=torch.int8)
        if not self.has_fixed_length:
            status = status.masked_fill(self._stalled(at), Status.STALLED)
            status = status.masked_fill(self._diverged(at, progress), Status.DIVERGED)
        lost = known.broken >= (1.0 if self.has_fixed_length else 2.0)
        status = status.masked_fill(lost, Status.NONFINITE).masked_fill(self.within(at), Status.CONVERGED)
        return status, ~at.finite & ~lost

    def tolerance(self, at: Evaluated, scale: Float[Tensor, "B n"] | None = None) -> Float[Tensor, "B m"]:
        """The error that is small enough; ``scale`` in place of the point's own where it is relative to the state."""
        own = at.scale if scale is None else scale
        if self.yardstick.fine:
            return self.yardstick.tolerance(own)
        start = None if self._known is None or self.termination.relative_to == "state" else self._known.first
        return self.termination.atol + self.termination.rtol * (own if start is None else start)

    def within(self, at: Evaluated) -> Bool[Tensor, " B"]:
        """Whether all blocks of a row are within the tolerance, and nothing speaks against it."""
        small = at.error <= self.tolerance(at)
        sure = (
            torch.ones_like(small)
            if self._runaway is None
            else ~self._runaway.doubts(at.error <= _FLOOR * self._eps * at.scale)
        )
        if at.settled is not None:
            sure = sure & at.settled.unsqueeze(1)
        atol = self.yardstick.atol
        if isinstance(atol, Tensor) or atol > 0.0:
            sure = sure | ((at.error <= atol) & torch.as_tensor(atol > 0.0, device=at.error.device))
        return at.finite & (small & sure).all(dim=1)

    def select_rows(self, take: Callable[[Any], Any]) -> Judge:
        """The judge of some of the rows, which ``take`` picks from all that it is given."""
        part = copy.copy(self)
        part._known, part._runaway = take((self._known, self._runaway))
        return part

    def _diverged(self, at: Evaluated, progress: Float[Tensor, "B k"]) -> Bool[Tensor, " B"]:
        assert self._known is not None
        if self.yardstick.fine:  # logarithms, in units of the tolerance
            return at.finite & (progress[:, 0] > self._known.begun + math.log(self.termination.divergence))
        # From a start that is nearly a fixed point an error of the size of the state has grown as far.
        far = (at.error > _AT_HOME * self._known.scale) & (at.error > _BESIDE * at.scale)
        return at.finite & ((at.error > self.termination.divergence * self._known.first) & far).any(dim=1)

    def _stalled(self, at: Evaluated) -> Bool[Tensor, " B"]:
        assert self._known is not None
        at_floor = at_rounding_floor(at.error, at.scale, self._eps)
        patience = self.termination.patience
        long = max(patience, int(_WAIT * self._points))
        return at.finite & (self._known.waited >= torch.where(at_floor, min(_FLOOR_PATIENCE, patience), long))


@dataclass(frozen=True)
class _Known:
    """What a judge remembers of every row.

    ``first`` and ``scale``: the first error and the first scale, ``(B, blocks)``. ``low``: the smallest values since
    the last peak of the numbers that fall as a row goes on (``Yardstick.progress``), ``(B, k)``, the first of which is
    what points are compared by. All else ``(B,)``: the first, the smallest and the largest of these, ``begun``,
    ``best`` and ``high``; ``last``, that of the last point, and ``run``, for how many points it has gone up, or down
    where negative; ``waited``, points without progress; ``broken``, points that were not finite since the best one.
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

    @staticmethod
    def begin(at: Evaluated, progress: Float[Tensor, "B k"]) -> _Known:
        error = progress[:, 0]
        broken = torch.where(at.finite, 0.0, 2.0).to(error)  # a start that is not finite cannot be rescued
        one = torch.ones_like(error)
        return _Known(at.error, at.scale, progress, error, error, error, error, 0.0 * one, one, broken)

    def seen(self, at: Evaluated, progress: Float[Tensor, "B k"]) -> _Known:
        error = progress[:, 0]
        better, higher = at.finite & (error < self.best), at.finite & (error > self.high)
        lower = at.finite & (progress < self.low).any(dim=1)
        up = (error > self.last).to(error) - (error < self.last).to(error)
        run = torch.where(up * self.run >= 0, self.run, 0.0) * up.abs() + up
        moved = lower | higher | (at.finite & (run.abs() >= _ONE_WAY))
        low = torch.where(at.finite.unsqueeze(1), torch.minimum(progress, self.low), self.low)
        return _Known(
            first=self.first,
            scale=self.scale,
            begun=self.begun,
            low=torch.where(higher.unsqueeze(1), progress, low),
            high=torch.where(higher, error, self.high),
            best=torch.where(better, error, self.best),
            last=error,
            run=run,
            waited=torch.where(moved, 0.0, self.waited + 1.0),
            broken=torch.where(better, 0.0, self.broken + (~at.finite).to(self.broken)),
        )
