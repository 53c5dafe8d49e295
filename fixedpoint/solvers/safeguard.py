"""Detects rows in which a quasi-Newton method should discard its history: the residual grows, or no longer falls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Growth", "Idleness"]


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


@dataclass(frozen=True)
class Idleness:
    """The rounds since the residual of every row was last smaller than ever before, or its history was discarded."""

    rounds: Int[Tensor, " B"]

    @classmethod
    def begin(cls, norm: Float[Tensor, " B"]) -> Idleness:
        return cls(torch.zeros_like(norm, dtype=torch.int64))

    def watch(
        self, norm: Float[Tensor, " B"], best: Float[Tensor, " B"], patience: int
    ) -> tuple[Bool[Tensor, " B"], Idleness]:
        """Return the rows that have been idle for ``patience`` rounds, and the updated record.

        ``best`` is the smallest residual norm before this round.
        """
        rounds = torch.where(norm < best, 0, self.rounds + 1)
        idle = rounds >= patience
        return idle, Idleness(torch.where(idle, 0, rounds))
