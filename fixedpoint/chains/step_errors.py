"""Stores the errors of every state of a chain, round by round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["StepErrors"]


@dataclass(frozen=True)
class StepErrors:
    """The relative change that the defects imply at every state after every round.

    Chain solvers return it as ``solution.extras["step_errors"]``.

    Attributes
    ----------
    rounds
        One array per entry, shape ``(B, p)``, float32: the change implied at every state of the window, relative to the
        norm of the state.
    offsets
        One array per entry, shape ``(B,)``, int64: the offset of the window. Its first state is number ``offset + 1``.
    length
        ``N``, the number of steps.
    numbers
        The round after which each entry was taken, counted from 1 and including the rounds of the start. A number
        occurs again where states became final and no step was left to evaluate.
    """

    rounds: tuple[NDArray[np.float32], ...]
    offsets: tuple[NDArray[np.int64], ...]
    length: int
    numbers: tuple[int, ...]

    def of_row(self, row: int) -> NDArray[np.float32]:
        """Return the errors of one row, shape ``(entries, N)``; NaN outside the window and after the row ended."""
        errors = np.empty((len(self.rounds), self.length), dtype=np.float32)
        for k, (changes, offset) in enumerate(zip(self.rounds, self.offsets, strict=True)):
            errors[k] = self._placed(changes[row], offset[row])
        return errors

    def thinned(
        self, rows: int, rounds: int, steps: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """Return the errors of the first rows, thinned out to a limited number of rounds and steps.

        Where there are more rounds or steps than the limit, every k-th one is taken, counted back from the last. Values
        are picked, not averaged. Where one round has several entries, the last one in which the row had not ended
        counts.

        Parameters
        ----------
        rows, rounds, steps
            The largest number of each, at least 1.

        Returns
        -------
        errors
            Shape ``(b, R, n)``, float32: entries of :meth:`of_row`.
        numbers
            Shape ``(R,)``, int64: the numbers of these rounds.
        steps
            Shape ``(n,)``, int64: the numbers of these states, from 1 to N.

        Raises
        ------
        ValueError
            When ``rows``, ``rounds`` or ``steps`` is less than 1.
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
        """Return the values of a window at their places in the chain, NaN elsewhere; shape ``(N,)``."""
        states = np.full(self.length, np.nan, dtype=np.float32)
        states[offset : offset + len(changes)] = changes
        return states


def _last_of_each(count: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` of the indices ``0 .. count - 1``, evenly spaced and including the last."""
    stride = max(1, -(-count // most))
    return np.arange(count - 1, -1, -stride)[::-1]
