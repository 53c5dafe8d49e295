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
    age
        Shape ``(B,)``: rounds since then.
    """

    rounds: int
    part: float
    mark: Float[Tensor, " B"] | None = None
    age: Float[Tensor, " B"] | None = None

    def updated(self, relative: Float[Tensor, " B"]) -> Pace:
        """Return the pace after a further point, whose relative error may be NaN or Inf."""
        if self.mark is None or self.age is None:
            mark = relative.nan_to_num(nan=torch.inf, posinf=torch.inf)
            return replace(self, mark=mark, age=torch.zeros_like(relative))
        fallen = relative <= self.part * self.mark
        mark = torch.where(fallen, relative, self.mark)
        return replace(self, mark=mark, age=torch.where(fallen, 0.0, self.age + 1.0))

    @property
    def slow(self) -> Bool[Tensor, " B"]:
        """Shape ``(B,)``: the rows that are too slow."""
        assert self.age is not None
        return self.age >= self.rounds
