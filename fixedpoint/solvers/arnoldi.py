"""Arnoldi's process for every row: a basis of the Krylov space, orthogonalised vector by vector.

Sums over unknowns are made on the device. What they give is read once for each vector, and everything else is done with
numbers on the host: arrays whose last dimension is the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.combine import add_combination
from fixedpoint.core.reduce import row_dots, row_norms
from fixedpoint.core.transfer import to_device, to_host

__all__ = ["Arnoldi", "Column", "rows_last", "unit"]

# If at least this fraction of a vector's length is left, one pass is enough. With less, the errors that one pass leaves
# would grow from step to step.
_ENOUGH = 0.7
# Vectors for which there is room at first; room is doubled when it is used up.
_ROOM = 6


@dataclass(frozen=True)
class Column:
    """The components of an image along the basis, on the host.

    Attributes
    ----------
    along
        Shape ``(j, B)``, float64: the components along the vectors of the basis.
    remainder
        Shape ``(B,)``, float64: length of the part that is orthogonal to them; zero where that is only rounding, so
        that the basis already spans the space.
    length
        Shape ``(B,)``, float64: length of the image.
    """

    along: NDArray[np.float64]
    remainder: NDArray[np.float64]
    length: NDArray[np.float64]


class Arnoldi:
    """The basis of the Krylov space of every row.

    One pass of classical Gram-Schmidt leaves an error of the size of the image's rounding along the basis. Where little
    of the image is left, that error is relatively large, and a second pass removes it (selective reorthogonalisation;
    Daniel, Gragg, Kaufman & Stewart 1976). On a CPU only the rows that require it get the second pass. On other devices
    every row does, and its result is used where required, because to select the rows the host would have to wait.

    Parameters
    ----------
    first
        Shape ``(B, D)``: the first vector, of unit length, or zero in rows that take no part.
    most
        The largest number of vectors that the basis will have, at least 1.
    orthogonality
        By default the second pass is made wherever little of an image is left, and the basis is orthogonal up to
        rounding. Given, it is made only where the inner products of basis vectors may otherwise exceed this number.
    least
        A remainder up to rounding times this length counts as rounding, even where the image is shorter: 1 where the
        matrix of interest is the identity minus the one of the images, at least 0.
    """

    def __init__(
        self, first: Float[Tensor, "B D"], most: int, least: float = 0.0, orthogonality: float | None = None
    ) -> None:
        self._most, self._least, self._orthogonality = most, least, orthogonality
        self._lost = np.zeros(len(first))  # a bound of the inner products of basis vectors
        self._held = first.new_empty(min(_ROOM, most), *first.shape)
        self._held[0] = first
        self.size = 1

    @property
    def vector(self) -> Float[Tensor, "B D"]:
        """The last vector of the basis, contiguous."""
        return self._held[self.size - 1]

    @property
    def basis(self) -> Float[Tensor, "B j D"]:
        """All vectors of the basis."""
        return self._held[: self.size].transpose(0, 1)

    def components(
        self, image: Float[Tensor, "B D"], *beside: Float[Tensor, "B _"]
    ) -> tuple[Column, list[NDArray[np.float64]]]:
        """Split the image of the last vector into components along the basis and a remainder.

        Parameters
        ----------
        image
            Shape ``(B, D)``.
        beside
            Further numbers to read in the same transfer, shape ``(B, n)``, float64.

        Returns
        -------
        column
            The components. :meth:`append` makes a vector of the remainder.
        numbers
            What ``beside`` held, each of shape ``(n, B)``.
        """
        basis, eps = self.basis, torch.finfo(image.dtype).eps
        along = row_dots(basis, image)
        self._rest = add_combination(image, basis, -along.unsqueeze(1), out=self._slot())
        left = row_norms(self._rest)
        if image.device.type != "cpu" and self._orthogonality is None:
            before = torch.linalg.vector_norm(torch.cat([along, left.unsqueeze(1)], dim=1), dim=1)
            little = (left < _ENOUGH * before).unsqueeze(1)
            more = torch.where(little, row_dots(basis, self._rest), 0.0)
            self._rest = add_combination(self._rest, basis, -more.unsqueeze(1), out=self._slot())
            along, left = along + more, torch.where(little.squeeze(1), row_norms(self._rest), left)
        components, (remainder,), *numbers = rows_last(along, left.unsqueeze(1), *beside)
        with np.errstate(all="ignore"):  # a row that overflows has NaN or Inf here
            length = remainder
            for each in components:
                length = np.hypot(length, each)
            if self._orthogonality is not None:
                # What an image has along the basis grows by the factor by which its remainder is lengthened.
                lost = (self._lost + eps) * (length / remainder)
                poor = lost > self._orthogonality
                self._lost = np.where(poor, self._lost, np.maximum(self._lost, lost))
            elif image.device.type == "cpu":
                poor = remainder < _ENOUGH * length
            else:
                poor = np.zeros(len(remainder), dtype=np.bool_)
            if poor.any():
                components, remainder = self._again(basis, np.flatnonzero(poor), components, remainder)
            rounding = 10 * eps * np.maximum(length, self._least)
            remainder = np.where(remainder > rounding, remainder, 0.0)
        return Column(components, remainder, length), numbers

    def append(self, remainder: NDArray[np.float64]) -> None:
        """Append what was left of the last image, divided by its length; zero in rows whose ``remainder`` is zero."""
        used = remainder > 0
        rest, wide = self._rest, torch.promote_types(self._rest.dtype, torch.float32)
        factor = to_device(1.0 / np.where(used, remainder, 1.0), rest.device).to(wide).unsqueeze(1)
        slot = self._slot()
        if rest.dtype == wide:
            torch.mul(rest, factor, out=slot)
        else:
            slot.copy_(rest * factor)
        if not used.all():
            slot.masked_fill_(to_device(~used, rest.device).unsqueeze(1), 0.0)
        self.size += 1

    def keep(self, rows: NDArray[np.int64]) -> None:
        """Drop all other rows."""
        self._lost = self._lost[rows]
        self._held = self._held[: self.size].index_select(1, to_device(rows, self._held.device))

    def combination(self, weights: NDArray[np.float64], rows: NDArray[np.int64] | None = None) -> Float[Tensor, "k D"]:
        """Return the sum of the basis vectors with the given weights, shape ``(j, k)``, in all rows or in some."""
        basis = self.basis[:, : len(weights)]
        if rows is not None:
            basis = basis[to_device(rows, basis.device)]
        factors = to_device(weights.T, basis.device).unsqueeze(1)
        return add_combination(torch.zeros_like(basis[:, 0]), basis, factors)

    def _slot(self) -> Float[Tensor, "B D"]:
        """The memory of the next vector."""
        if self.size == len(self._held):
            wider = self._held.new_empty(max(min(2 * self.size, self._most), self.size + 1), *self._held.shape[1:])
            wider[: self.size] = self._held
            self._held = wider
        return self._held[self.size]

    def _again(
        self,
        basis: Float[Tensor, "B j D"],
        rows: NDArray[np.int64],
        components: NDArray[np.float64],
        remainder: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Make the second pass in some rows; return the components and remainders of all."""
        index, components, remainder = to_device(rows, basis.device), components.copy(), remainder.copy()
        everyone = len(rows) == len(remainder)
        some, rest = (basis, self._rest) if everyone else (basis[index], self._rest[index])
        more = row_dots(some, rest)
        rest = add_combination(rest, some, -more.unsqueeze(1), out=rest)
        self._rest = rest if everyone else self._rest.index_copy_(0, index, rest)
        found, (left,) = rows_last(more, row_norms(rest).unsqueeze(1))
        components[:, rows] += found
        remainder[rows] = left
        return components, remainder


def rows_last(*numbers: Float[Tensor, "B _"]) -> list[NDArray[np.float64]]:
    """Return tensors of numbers as arrays ``(n, B)`` on the host, by one transfer."""
    return [np.ascontiguousarray(each.T) for each in to_host(*numbers)]


def unit(vector: Float[Tensor, "B D"], size: Float[Tensor, " B"], active: Bool[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """Each row divided by its ``size``; zero where the size is zero or the row is not active."""
    usable = (active & (size > 0)).unsqueeze(1)
    # In double precision, since the reciprocal of a tiny length is out of the range of single precision.
    scaled = (vector.double() / torch.where(usable, size.unsqueeze(1), 1.0)).to(vector.dtype)
    return torch.where(usable, scaled, 0.0)
