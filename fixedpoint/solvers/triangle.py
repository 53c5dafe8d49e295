"""The small least-squares problem of GMRES, turned into a triangle by Givens rotations as its columns arrive.

Everything is on the host, in arrays whose last dimension is the rows of the batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Triangle"]


class Triangle:
    """The problems ``min ||rhs e_1 - H y||``, one for each row, column by column of ``H``.

    The last entry of the rotated right-hand side is the residual. The columns of the inverse of the triangle give the
    length of ``y`` without back substitution: a further column adds one multiple of a column to ``y``.

    Parameters
    ----------
    rhs
        Shape ``(B,)``: lengths of the first residuals; zero for rows that take no part.
    """

    def __init__(self, rhs: NDArray[np.float64]) -> None:
        self.rhs = [rhs]
        self._columns: list[NDArray[np.float64]] = []
        self._pivots: list[NDArray[np.float64]] = []
        self._cosines: list[NDArray[np.float64]] = []
        self._sines: list[NDArray[np.float64]] = []
        self._inverse: list[NDArray[np.float64]] = []
        self._solution = np.zeros((0, len(rhs)))

    @property
    def residual(self) -> NDArray[np.float64]:
        """Shape ``(B,)``: the residuals of the best ``y``."""
        found: NDArray[np.float64] = np.abs(self.rhs[-1])
        return found

    def append(self, along: NDArray[np.float64], last: NDArray[np.float64], rounding: NDArray[np.float64]) -> None:
        """Append a column of ``H``.

        Parameters
        ----------
        along
            Shape ``(j + 1, B)``: the column down to the diagonal. It is overwritten.
        last
            Shape ``(B,)``: the entry below.
        rounding
            Shape ``(B,)``: a pivot up to this size counts as zero: the column does not reduce the residual.
        """
        j = len(self._columns)
        for i in range(j):
            upper, lower = along[i], along[i + 1]
            along[i], along[i + 1] = (
                self._cosines[i] * upper + self._sines[i] * lower,
                self._cosines[i] * lower - self._sines[i] * upper,
            )
        length = np.hypot(along[j], last)
        regular = length > rounding
        if regular.all():
            cosine, sine, pivot = along[j] / length, last / length, length
        else:
            safe = np.where(regular, length, 1.0)
            cosine, sine = np.where(regular, along[j] / safe, 0.0), np.where(regular, last / safe, 1.0)
            pivot = np.where(regular, length, np.inf)  # so that the component along it is zero
        head = self.rhs[j]
        self.rhs[j] = cosine * head
        self.rhs.append(-sine * head)
        self._cosines.append(cosine)
        self._sines.append(sine)
        self._columns.append(along)
        self._pivots.append(pivot)

    def end(self, going: NDArray[np.bool_]) -> None:
        """Let all other rows end: their further components are zero."""
        self.rhs[-1] = np.where(going, self.rhs[-1], 0.0)

    def length(self, square: NDArray[np.float64], beside: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the length of ``p + V y``, whose square is ``|p|^2 + 2 y . V^T p + |y|^2``; call it at every column.

        Parameters
        ----------
        square
            Shape ``(B,)``: ``|p|^2``.
        beside
            Components of ``p`` along the basis, each of shape ``(B,)``; empty where ``p`` is zero.
        """
        j = len(self._columns) - 1
        column = self._columns[j]
        fresh = np.zeros_like(column)
        for i in range(j):
            fresh[: i + 1] -= column[i] * self._inverse[i]
        fresh[j] = 1.0
        fresh /= self._pivots[j]
        self._inverse.append(fresh)
        solution = self.rhs[j] * fresh
        solution[:j] += self._solution
        self._solution = solution
        for i in range(j + 1):
            square = square + solution[i] * (solution[i] + 2 * beside[i] if beside else solution[i])
        return np.sqrt(np.maximum(square, 0.0))

    def coefficients(self, chosen: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return ``y`` of some rows, by default all, by back substitution; zero for a pivot that is zero."""
        part = slice(None) if chosen is None else chosen
        solved = np.stack([each[part] for each in self.rhs[:-1]])
        with np.errstate(all="ignore"):  # a row that overflows has NaN or Inf here
            for i in reversed(range(len(solved))):
                solved[i] /= self._pivots[i][part]
                for above in range(i):
                    solved[above] -= self._columns[i][above][part] * solved[i]
        return solved

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all other rows."""
        for several in (self.rhs, self._columns, self._pivots, self._cosines, self._sines, self._inverse):
            several[:] = [each[..., rows] for each in several]
        self._solution = self._solution[:, rows]
