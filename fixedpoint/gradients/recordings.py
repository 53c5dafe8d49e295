"""Recordings: the linear map of an adjoint equation, recorded again without the rows that are done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.transfer import to_device
from fixedpoint.gradients.recorded import Map

__all__ = ["Recordings"]


class Recordings:
    """A linear map ``K`` of rows, from which maps of some of the rows are made.

    Parameters
    ----------
    linear
        Function that returns ``K v`` for ``v`` of shape ``(B, D)``.
    count
        ``B``.
    record
        Function of row indices, shape ``(k,)``, int64, that records these rows by one evaluation and returns their
        ``K``; None if these rows cannot be evaluated without the others. By default no row can.

    Attributes
    ----------
    evaluations
        Shape ``(B,)``, int64: evaluations of each row spent on recording again.
    """

    def __init__(self, linear: Map, count: int, record: Callable[[Tensor], Map | None] | None = None) -> None:
        self._record = record
        self._made: list[tuple[NDArray[np.int64], Map]] = [(np.arange(count), linear)]
        self.evaluations = np.zeros(count, dtype=np.int64)

    def part(self, rows: NDArray[np.int64], anew: bool = True) -> Map:
        """Return ``K`` of some rows, given by their indices.

        If they are at most half of the rows that were recorded last, and ``anew`` is true, they are recorded again.
        """
        # The newest recording has the fewest rows.
        kept, linear = next(each for each in reversed(self._made) if np.isin(rows, each[0]).all())
        if anew and self._record is not None and 2 * len(rows) <= len(kept):
            found = self._record(torch.from_numpy(rows))
            self.evaluations[rows] += 1
            if found is None:
                self._record = None  # not tried again: each attempt costs an evaluation
            else:
                kept, linear = rows, found
                self._made.append((kept, linear))
        if len(kept) == len(rows):
            return linear
        place = np.searchsorted(kept, rows)

        def part(v: Tensor) -> Tensor:
            index = to_device(place, v.device)
            return linear(v.new_zeros(len(kept), v.shape[1]).index_copy(0, index, v))[index]

        return part
