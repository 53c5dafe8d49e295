"""Growth: detects rows whose residual grows so much that a quasi-Newton method should discard its history."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Growth"]


@dataclass(frozen=True)
class Growth:
    """The smallest residual norm of every row since its last restart (``best``); growth is measured from it."""

    best: Float[Tensor, " B"]

    @classmethod
    def begin(cls, norm: Float[Tensor, " B"]) -> Growth:
        return cls(norm)

    def watch(
        self, norm: Float[Tensor, " B"], factor: float, led: Bool[Tensor, " B"]
    ) -> tuple[Bool[Tensor, " B"], Growth]:
        """Return the rows that should discard their history, and the updated record.

        These are the rows whose residual exceeds ``factor`` times the smallest one and that have a history (``led``):
        where a plain step made the residual grow, there is no history to discard. In all rows that have grown, the
        record starts again from the present residual.
        """
        grown = norm > factor * self.best
        return led & grown, Growth(torch.where(grown, norm, torch.minimum(norm, self.best)))
