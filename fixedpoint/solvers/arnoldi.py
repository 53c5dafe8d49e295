"""One step of Arnoldi's process for every row: orthogonalises a vector against a basis, and normalises it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.combine import add_combination
from fixedpoint.core.reduce import row_dots, row_norms

__all__ = ["Extension", "orthogonalised", "unit"]

# If at least this fraction of a vector's length is left, one pass is enough. With less, the errors that one pass leaves
# would grow from step to step.
_ENOUGH = 0.7


class Extension(NamedTuple):
    """A vector orthogonalised against a basis, and its components along the basis.

    Attributes
    ----------
    vector
        Shape ``(B, D)``: the part of the vector that is orthogonal to the basis, not normalised.
    along
        Shape ``(B, j)``, float64: the components of the vector along the basis.
    remainder
        Shape ``(B,)``, float64: length of the orthogonal part; zero where that is only rounding, so that the basis
        already spans the space.
    rounding
        Shape ``(B,)``, float64: the length up to which a remainder counts as rounding.
    """

    vector: Float[Tensor, "B D"]
    along: Float[Tensor, "B j"]
    remainder: Float[Tensor, " B"]
    rounding: Float[Tensor, " B"]


def orthogonalised(basis: Float[Tensor, "B j D"], vector: Float[Tensor, "B D"]) -> Extension:
    """Orthogonalise a vector against a basis, by classical Gram-Schmidt.

    One pass leaves an error of the size of the vector's rounding along the basis. Where little of the vector is left,
    that error is relatively large, and a second pass removes it (selective reorthogonalisation; Daniel, Gragg, Kaufman
    & Stewart 1976). On a CPU only the rows that require it get the second pass. On other devices every row does, and
    its result is used where required, because to select the rows the host would have to wait.
    """
    before = row_norms(vector)
    column = row_dots(basis, vector)
    vector = add_combination(vector, basis, -column.unsqueeze(1))
    left = row_norms(vector)
    little = left < _ENOUGH * before
    if vector.device.type != "cpu":
        along = torch.where(little.unsqueeze(1), row_dots(basis, vector), 0.0)
        vector = add_combination(vector, basis, -along.unsqueeze(1))
        column, left = column + along, torch.where(little, row_norms(vector), left)
    elif bool(little.any()):
        rows = little.nonzero().squeeze(1)
        some, rest = basis[rows], vector[rows]
        along = row_dots(some, rest)
        rest = add_combination(rest, some, -along.unsqueeze(1))
        vector, column = vector.index_copy_(0, rows, rest), column.index_add_(0, rows, along)
        left.index_copy_(0, rows, row_norms(rest))
    rounding = 10 * torch.finfo(vector.dtype).eps * before
    return Extension(vector, column, torch.where(left > rounding, left, 0.0), rounding)


def unit(vector: Float[Tensor, "B D"], size: Float[Tensor, " B"], active: Bool[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """Each row divided by its ``size``; zero where the size is zero or the row is not active."""
    usable = active & (size > 0)
    wide = torch.promote_types(vector.dtype, torch.float32)
    factor = torch.where(usable, 1.0 / torch.where(usable, size, 1.0), 0.0)
    return (vector.to(wide) * factor.to(wide).unsqueeze(1)).to(vector.dtype)
