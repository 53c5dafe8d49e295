"""The statuses of all rows of a solve, as one array that reads like a tuple of :class:`.Status`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from fixedpoint.core.status import Status

__all__ = ["Statuses"]

_STATUS = tuple(Status)


class Statuses(Sequence[Status]):
    """An immutable sequence of statuses, which equals a tuple of the same ones.

    A batch of many rows has one array of codes instead of an object for every row, so what asks all rows at once costs
    no Python for each of them.

    Parameters
    ----------
    codes
        Shape ``(B,)``: the values of the statuses, or the statuses.

    Attributes
    ----------
    codes
        Shape ``(B,)``, int8, read-only.
    """

    __slots__ = ("codes",)

    codes: NDArray[np.int8]

    def __init__(self, codes: Sequence[Status] | NDArray[np.int8]) -> None:
        self.codes = np.array(codes.codes if isinstance(codes, Statuses) else codes, dtype=np.int8)
        self.codes.flags.writeable = False

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, place: int) -> Status: ...

    @overload
    def __getitem__(self, place: slice) -> Statuses: ...

    def __getitem__(self, place: int | slice) -> Status | Statuses:
        return Statuses(self.codes[place]) if isinstance(place, slice) else _STATUS[self.codes[place]]

    def __iter__(self) -> Iterator[Status]:
        return map(_STATUS.__getitem__, self.codes.tolist())

    def __contains__(self, status: object) -> bool:
        return status in self.present()

    def count(self, status: Any) -> int:
        """Return how many rows have a status."""
        return self.present().get(status, 0)

    def present(self) -> dict[Status, int]:
        """Return the statuses that occur, in order, with the number of their rows."""
        numbers = np.bincount(self.codes, minlength=len(_STATUS)).tolist()
        return {status: number for status, number in zip(_STATUS, numbers, strict=True) if number}

    def where(self, rows: NDArray[np.bool_], status: Status) -> Statuses:
        """Return these statuses with another one in ``rows``, shape ``(B,)``."""
        return Statuses(np.where(rows, np.int8(status), self.codes))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Statuses):
            return np.array_equal(self.codes, other.codes)
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return Statuses, (self.codes,)

    def __repr__(self) -> str:
        return repr(tuple(self))
