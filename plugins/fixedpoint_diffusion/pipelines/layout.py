"""How the samples of a pipeline are the rows of a chain."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """How the samples of a pipeline are the rows of a chain: sample ``q count + i`` belongs to row ``i``.

    Attributes
    ----------
    count
        ``d``, the number of rows.
    each
        The number of samples of a row.
    """

    count: int
    each: int = 1

    def rows(self, samples: Float[Tensor, "n *event"]) -> Float[Tensor, "d *row"]:
        """Return the rows that some samples make."""
        if self.each == 1:
            return samples
        found: Tensor = samples.unflatten(0, (self.each, self.count)).transpose(0, 1)
        return found

    def samples(self, rows: Float[Tensor, "d *row"]) -> Float[Tensor, "n *event"]:
        """Return the samples in some rows."""
        return rows if self.each == 1 else rows.transpose(0, 1).flatten(0, 1)
