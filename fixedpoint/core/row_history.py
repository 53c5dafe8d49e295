"""What a judge stores of every row from point to point: its first, smallest, largest and latest errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fixedpoint.core.point import Numbers
from fixedpoint.core.small import Number, exp2, some, taken, where

__all__ = ["Measured", "RowHistory"]

# An error that rose, or fell, in this many consecutive rounds follows a trend, not chance.
_ONE_WAY = 8


class Measured(NamedTuple):
    """The numbers of a point, in floats where there is one row of one block.

    Attributes
    ----------
    error, scale
        Shape ``(B, blocks)``, or floats.
    finite, settled
        Shape ``(B,)``, or bools.
    """

    error: Any
    scale: Any
    finite: Any
    settled: Any

    @staticmethod
    def of(numbers: Numbers) -> Measured:
        settled = numbers.settled
        if numbers.error.size == 1:
            single = None if settled is None else bool(settled[0])
            return Measured(numbers.error.item(), numbers.scale.item(), bool(numbers.finite[0]), single)
        return Measured(numbers.error, numbers.scale, numbers.finite, settled)


@dataclass
class RowHistory:
    """What a judge stores of every row, in floats where there is one row of one block.

    "Number" is the first one of ``Yardstick.progress``, by which points are compared.

    Attributes
    ----------
    first, scale
        Shape ``(B, blocks)``: the first error and the first scale.
    low
        Shape ``(B,)`` each: the smallest value of each number of ``Yardstick.progress`` since the largest number.
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

    first: Any
    scale: Any
    low: tuple[Any, ...]
    begun: Any
    high: Any
    best: Any
    last: Any
    run: Any
    waited: Any
    broken: Any
    plain: Any

    @staticmethod
    def begin(at: Measured, progress: tuple[Number, ...]) -> RowHistory:
        """Return what is stored after the first point."""
        error = progress[0]
        broken = where(at.finite, 0.0, math.inf)  # a start that is not finite cannot be rescued
        none = where(at.finite, 0.0, 0.0)
        return RowHistory(at.error, at.scale, progress, error, error, error, error, none, none + 1.0, broken, none)

    def update(self, at: Measured, progress: tuple[Number, ...]) -> None:
        """Note a further point."""
        error, finite = progress[0], at.finite
        higher = finite & (error > self.high)
        lower: Any = False
        for now, before in zip(progress, self.low, strict=True):
            lower = lower | (now < before)
        lower = finite & lower
        up = where(error > self.last, 1.0, where(error < self.last, -1.0, 0.0))
        run = self.run = where(up * self.run >= 0.0, self.run, 0.0) * (up * up) + up
        moved = lower | higher | (finite & ((run >= _ONE_WAY) | (run <= -_ONE_WAY)))
        self.waited = where(moved, 0.0, self.waited + 1.0)
        if some(lower | higher):
            self.low = tuple(
                where(higher, now, where(finite & (now < before), now, before))
                for now, before in zip(progress, self.low, strict=True)
            )
            self.high = where(higher, error, self.high)
        better = finite & (error < self.best)
        if some((finite ^ True) | (self.plain > 0.0) | (self.broken > 0.0)):
            broken, plain = where(better & (self.plain == 0.0), 0.0, self.broken), self.plain
            # A plain step from a rescued row that is not finite, either, would be repeated for ever.
            self.broken = where(finite, broken, where(plain > 0.0, math.inf, broken + 1.0))
            self.plain = where(finite, where(plain > 0.0, plain - 1.0, 0.0), exp2(self.broken) - 1.0)
        self.best = where(better, error, self.best)
        self.last = error

    def take(self, rows: NDArray[np.int64]) -> RowHistory:
        """Return what is stored of some of several rows."""
        names = [each.name for each in fields(self) if each.name != "low"]
        parts = {name: taken(getattr(self, name), rows) for name in names}
        return RowHistory(low=tuple(taken(each, rows) for each in self.low), **parts)
