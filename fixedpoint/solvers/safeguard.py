"""Detects rows in which a quasi-Newton method should discard its history: the residual grows, or no longer falls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fixedpoint.core.small import where

__all__ = ["Growth", "Idleness"]


@dataclass(frozen=True)
class Growth:
    """The smallest residual norm of every row since its last restart (``best``); growth is measured from it.

    Shape ``(B,)``, as all numbers here: arrays on the host, or tensors.
    """

    best: Any

    @classmethod
    def begin(cls, norm: Any) -> Growth:
        return cls(norm)

    def watch(self, norm: Any, factor: float) -> tuple[Any, Growth]:
        """Return the rows whose residual exceeds ``factor`` times the smallest one, and the updated record.

        They should discard their history, if they have one: a row that a plain step made grow has none. In all rows
        that have grown, the record starts again from the present residual.
        """
        grown = norm > factor * self.best
        return grown, Growth(where(grown | (norm < self.best), norm, self.best))


@dataclass(frozen=True)
class Idleness:
    """The rounds since the residual of every row was last smaller than ever before, or its history was discarded."""

    rounds: Any

    @classmethod
    def begin(cls, norm: Any) -> Idleness:
        return cls(0 * (norm == norm))

    def watch(self, norm: Any, best: Any, patience: int) -> tuple[Any, Idleness]:
        """Return the rows that have been idle for ``patience`` rounds, and the updated record.

        ``best`` is the smallest residual norm before this round.
        """
        rounds = where(norm < best, 0, self.rounds + 1)
        idle = rounds >= patience
        return idle, Idleness(where(idle, 0, rounds))
