"""Pace: which rows have made too little progress in their last rounds to go on with the same solver."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixedpoint.core.small import taken, where

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
        Shape ``(B,)``, as all others, or a float for a single row: the marks. None before the first point, whose error
        is the first mark.
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
    mark: Any = None
    most: NDArray[np.float64] | None = None
    rival: NDArray[np.float64] | None = None
    age: Any = None
    best: Any = None
    points: int = 0

    def updated(self, relative: Any) -> Pace:
        """Return the pace after a further point, whose relative error may be NaN or Inf."""
        known = where(relative == relative, relative, math.inf)
        if self.mark is None:
            none = where(relative == relative, 0, 0)
            return Pace(self.rounds, self.part, known, self.most, self.rival, none, known, 1)
        fallen = known <= self.part * self.mark
        mark, age = where(fallen, known, self.mark), where(fallen, 0, self.age + 1)
        best = where(known < self.best, known, self.best)
        return Pace(self.rounds, self.part, mark, self.most, self.rival, age, best, self.points + 1)

    @property
    def slow(self) -> Any:
        """Shape ``(B,)``: the rows that are too slow."""
        slow = self.age >= self.rounds
        if self.most is None or self.rival is None:
            return slow
        return slow | ((self.points >= self.most) & (self.best >= self.rival))

    def take(self, rows: NDArray[np.int64]) -> Pace:
        """Return the pace of some of several rows."""
        own = {name: getattr(self, name) for name in ("mark", "age", "best")}
        given = {name: getattr(self, name) for name in ("most", "rival")}
        parts: dict[str, Any] = {name: None if each is None else taken(each, rows) for name, each in own.items()}
        parts |= {name: None if each is None else each[rows] for name, each in given.items()}
        return replace(self, **parts)
