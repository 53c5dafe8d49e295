"""Pace: which rows have made too little progress in their last rounds to go on with the same solver."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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
    mark: Float[Tensor, " B"] | None = None
    most: Float[Tensor, " B"] | None = None
    rival: Float[Tensor, " B"] | None = None
    age: Float[Tensor, " B"] | None = None
    best: Float[Tensor, " B"] | None = None
    points: int = 0

    def updated(self, relative: Float[Tensor, " B"]) -> Pace:
        """Return the pace after a further point, whose relative error may be NaN or Inf."""
        known = relative.nan_to_num(nan=torch.inf, posinf=torch.inf)
        best = known if self.best is None else torch.minimum(self.best, known)
        if self.mark is None:
            mark, age = known, torch.zeros_like(known)
        else:
            fallen = known <= self.part * self.mark
            mark = torch.where(fallen, known, self.mark)
            age = torch.where(fallen, 0.0, (0.0 if self.age is None else self.age) + torch.ones_like(known))
        return replace(self, mark=mark, age=age, best=best, points=self.points + 1)

    @property
    def slow(self) -> Bool[Tensor, " B"]:
        """Shape ``(B,)``: the rows that are too slow."""
        assert self.age is not None
        assert self.best is not None
        slow = self.age >= self.rounds
        if self.most is None or self.rival is None:
            return slow
        return slow | ((self.points >= self.most) & (self.best >= self.rival))
