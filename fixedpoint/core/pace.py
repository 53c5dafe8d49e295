"""Pace: which rows have made too little progress in their last rounds to go on with the same solver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pace"]


@dataclass(frozen=True)
class Pace:
    """A row is too slow if its relative error does not fall to ``part`` of its mark within ``rounds`` rounds.

    The mark of a row is its relative error when it last fell that far. A stalled row makes no progress at all: further
    rounds are of no use to it. They may be to a slow one, but another solver may make more of them.

    Attributes
    ----------
    rounds
        How many rounds a row has.
    part
        How far its relative error must have fallen after them.
    mark
        Shape ``(B,)``: the marks. None before the first point, whose error is the first mark.
    most, rival
        Shape ``(B,)``: a row is also too slow if it has had ``most`` points and none of them had a relative error below
        ``rival``. None: however many it has had.
    age
        Shape ``(B,)``: rounds since a row's error last fell. None before the first point.
    best
        Shape ``(B,)``: smallest relative error so far. None before the first point.
    points
        Number of points so far.
    """

    rounds: int
    part: float
    mark: NDArray[np.float64] | None = None
    most: NDArray[np.float64] | None = None
    rival: NDArray[np.float64] | None = None
    age: NDArray[np.int64] | None = None
    best: NDArray[np.float64] | None = None
    points: int = 0

    def updated(self, relative: NDArray[np.float64]) -> Pace:
        """Return the pace after a further point, whose relative error may be NaN or Inf."""
        known = np.where(np.isnan(relative), np.inf, relative)
        if self.mark is None or self.best is None or self.age is None:
            return replace(self, mark=known, age=np.zeros(len(known), dtype=np.int64), best=known, points=1)
        fallen = known <= self.part * self.mark
        return replace(
            self,
            mark=np.where(fallen, known, self.mark),
            age=np.where(fallen, 0, self.age + 1),
            best=np.minimum(self.best, known),
            points=self.points + 1,
        )

    @property
    def slow(self) -> NDArray[np.bool_]:
        """Shape ``(B,)``: the rows that are too slow."""
        assert self.age is not None
        assert self.best is not None
        slow: NDArray[np.bool_] = self.age >= self.rounds
        if self.most is None or self.rival is None:
            return slow
        return slow | ((self.points >= self.most) & (self.best >= self.rival))

    def take(self, rows: NDArray[np.int64]) -> Pace:
        """Return the pace of some of the rows."""
        kept = {name: getattr(self, name) for name in ("mark", "most", "rival", "age", "best")}
        parts: dict[str, Any] = {name: None if each is None else each[rows] for name, each in kept.items()}
        return replace(self, **parts)
