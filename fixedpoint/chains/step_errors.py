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
    numbers
        The number of every round; those of the start come before the first. Where states became final and nothing was
        left to evaluate, that of the round before once more.
    """

    rounds: tuple[NDArray[np.float32], ...]
    offsets: tuple[NDArray[np.int64], ...]
    length: int
    numbers: tuple[int, ...]

    def of_row(self, row: int) -> NDArray[np.float32]:
        """Shape ``(rounds, N)``: NaN outside of the window, and once the row had ended."""
        errors = np.empty((len(self.rounds), self.length), dtype=np.float32)
        for k, (changes, offset) in enumerate(zip(self.rounds, self.offsets, strict=True)):
            errors[k] = self._placed(changes[row], offset[row])
        return errors

    def thinned(
        self, rows: int, rounds: int, steps: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """The errors of the first rows, of no more than so many rounds and steps.

        Where there are more, every k-th is taken, counted from the last: single values, nothing is averaged. Of several
        looks at one round the last one counts in which the row had not ended.

        Parameters
        ----------
        rows, rounds, steps
            The most of each, at least 1.

        Returns
        -------
        errors
            Shape ``(b, R, n)``, float32: entries of :meth:`of_row`.
        numbers
            Shape ``(R,)``, int64: the number of each of these rounds.
        steps
            Shape ``(n,)``, int64: the number of each of these states, from 1 to N.

        Raises
        ------
        ValueError
            When one of the three is less than 1.
        """
        for name, most in (("rows", rows), ("rounds", rounds), ("steps", steps)):
            if most < 1:
                raise ValueError(f"{name} must be at least 1, got {most}")
        numbers = np.unique(self.numbers)
        numbers, columns = numbers[_last_of_each(len(numbers), rounds)], _last_of_each(self.length, steps)
        batch = len(self.offsets[0]) if self.offsets else 0
        errors = np.full((min(rows, batch), len(numbers), len(columns)), np.nan, dtype=np.float32)
        places = {int(number): place for place, number in enumerate(numbers)}
        for number, changes, offset in zip(self.numbers, self.rounds, self.offsets, strict=True):
            for row in range(len(errors) if number in places else 0):
                if not np.isnan(changes[row]).all():
                    errors[row, places[number]] = self._placed(changes[row], offset[row])[columns]
        return errors, numbers, columns + 1

    def _placed(self, changes: NDArray[np.float32], offset: np.int64) -> NDArray[np.float32]:
        """What is known of a window in its place in the chain: shape ``(N,)``."""
        states = np.full(self.length, np.nan, dtype=np.float32)
        states[offset : offset + len(changes)] = changes
        return states


def _last_of_each(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of the indices ``0 .. count - 1``, evenly spaced, the last one included."""
    stride = max(1, -(-count // most))
    return np.arange(count - 1, -1, -stride)[::-1]
