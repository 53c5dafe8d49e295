"""When the history of a quasi-Newton method does more harm than good."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Growth"]


@dataclass(frozen=True)
class Growth:
    """The smallest residual of every row since its last restart, against which growth is measured."""

    best: Float[Tensor, " B"]

    @classmethod
    def begin(cls, norm: Float[Tensor, " B"]) -> Growth:
        return cls(norm)

    def watch(
        self, norm: Float[Tensor, " B"], factor: float, led: Bool[Tensor, " B"]
    ) -> tuple[Bool[Tensor, " B"], Growth]:
        """The rows whose residual has grown by more than ``factor``, and the new record (theirs begins anew).

        Of the rows ``led`` by a history only: where a plain step has made it grow there is nothing to be forgotten.
        """
        grown = norm > factor * self.best
        return led & grown, Growth(torch.where(grown, norm, torch.minimum(norm, self.best)))
