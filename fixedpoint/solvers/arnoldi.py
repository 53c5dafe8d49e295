"""One step of Arnoldi's process, row by row: a vector is made orthogonal to a basis, and the basis grows by it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.reduce import add_combination, row_dots, row_norms

__all__ = ["Extension", "orthogonalised", "unit"]

# With so much of a vector left, one pass will do. Less of it makes errors that grow from step to step.
_ENOUGH = 0.7


class Extension(NamedTuple):
    """What is left of a vector, and what was taken from it.

    Attributes
    ----------
    vector
        Shape ``(B, D)``: orthogonal to the basis, not normalised.
    along
        Shape ``(B, j)``, float64: its components along the basis.
    remainder
        Shape ``(B,)``, float64: the length of what is left; zero where that is rounding: the space is complete.
    rounding
        Shape ``(B,)``, float64: what counted as rounding.
    """

    vector: Float[Tensor, "B D"]
    along: Float[Tensor, "B j"]
    remainder: Float[Tensor, " B"]
    rounding: Float[Tensor, " B"]


def orthogonalised(basis: Float[Tensor, "B j D"], vector: Float[Tensor, "B D"]) -> Extension:
    """Take what lies along the basis from a vector, by classical Gram-Schmidt.

    Once leaves rounding of the vector's size in the span, which is much where little is left: such rows are done again
    (selective reorthogonalisation; Daniel, Gragg, Kaufman & Stewart 1976). All rows are where asking would be a wait.
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
    """Rows divided by their sizes; zero where that is zero, or the row is not active."""
    usable = active & (size > 0)
    wide = torch.promote_types(vector.dtype, torch.float32)
    factor = torch.where(usable, 1.0 / torch.where(usable, size, 1.0), 0.0)
    return (vector.to(wide) * factor.to(wide).unsqueeze(1)).to(vector.dtype)
