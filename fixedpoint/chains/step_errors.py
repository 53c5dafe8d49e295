"""What a solve of a chain tells of its states, round by round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["StepErrors"]


@dataclass(frozen=True)
class StepErrors:
    """The change implied at every state after every round: ``solution.extras["step_errors"]`` of a chain solver.

    Attributes
    ----------
    rounds
        One array ``(B, p)`` a round, float32: relative to the size of the state.
    offsets
        One array ``(B,)`` a round: the number of the first of these states, less one.
    length
        ``N``.
    """

    rounds: tuple[NDArray[np.float32], ...]
    offsets: tuple[NDArray[np.int64], ...]
    length: int

    def of_row(self, row: int) -> NDArray[np.float32]:
        """Shape ``(rounds, N)``: NaN outside of the window, and once the row had ended."""
        errors = np.full((len(self.rounds), self.length), np.nan, dtype=np.float32)
        for k, (changes, offset) in enumerate(zip(self.rounds, self.offsets, strict=True)):
            errors[k, offset[row] : offset[row] + changes.shape[1]] = changes[row]
        return errors
