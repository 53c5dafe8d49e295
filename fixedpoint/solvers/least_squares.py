"""The small least-squares problem of multisecant methods, from its Gram matrix, in float64.

Minimise ``||r - C w||`` over ``w`` given ``G = C^T C`` and ``b = C^T r``. Columns are scaled to unit length first,
so that neither the solution's scale nor columns of very different size matter (a ridge added to unscaled squared
residuals wins near convergence and undoes the method). Elimination goes from the newest column to the oldest; a
column most of which the newer ones already span is dropped (Pollock & Rebholz 2023, "Filtering for Anderson
acceleration", eq. 3.1: ``|R_ii| < sigma ||c_i||``), and the newest never is.

A ridge, where one is asked for, is added to the scaled columns: nonlinear maps require one when the columns span many
scales, for what an old long column says of the present is only as good as the map is linear in between.

Where we differ: the filter's threshold follows the rounding of the data. A column is a difference of residuals and
carries noise of the size ``eps ||f||``; what is left of it below that says nothing. And elimination is written
out over the few columns, batched over rows: no library call, so no hidden synchronisation, and the same bits for
a row whatever its batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["solve_gram"]

# Pivots of a float64 Gram matrix with unit diagonal are known to about 1e-16: this keeps five digits of them.
_PIVOT = 1e-11


def solve_gram(
    gram: Float[Tensor, "*batch m m"],
    rhs: Float[Tensor, "*batch m"],
    valid: Bool[Tensor, "*batch m"],
    order: tuple[int, ...],
    noise: Float[Tensor, "*batch"],
    threshold: float = 0.0,
    ridge: float = 0.0,
) -> Float[Tensor, "*batch m"]:
    """Weights ``w``, zero for columns that are not valid or were dropped.

    Parameters
    ----------
    gram, rhs
        Float64.
    valid
        Columns that may be used.
    order
        Columns from the newest to the oldest.
    noise
        Length of a column below which it is rounding.
    threshold
        ``sigma``: a column is dropped when less than this part of it is new.
    ridge
        Added to the squared lengths of the columns, which are one: relative to each column, whatever its scale.
    """
    if not order:
        return rhs
    squares = gram.diagonal(dim1=-2, dim2=-1)
    usable = valid & (squares > 0) & squares.isfinite()
    length = torch.where(usable, squares, 1.0).sqrt()
    matrix = gram / length.unsqueeze(-1) / length.unsqueeze(-2)
    target = rhs / length
    floor = ((noise.unsqueeze(-1) / length) ** 2).clamp(min=max(_PIVOT, threshold**2)) + ridge
    if ridge:
        matrix = matrix + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    solved = []
    others = 1.0 - torch.eye(len(order), dtype=gram.dtype, device=gram.device)
    for position, j in enumerate(order):
        pivot = matrix[..., j, j]
        keep = usable[..., j] if position == 0 else usable[..., j] & (pivot > floor[..., j])
        pivot = torch.where(keep, pivot, 1.0)
        # Eliminate column j from every other equation; a dropped column is left where it is, with weight zero.
        share = torch.where(keep.unsqueeze(-1), matrix[..., :, j] / pivot.unsqueeze(-1), 0.0) * others[j]
        matrix = matrix - share.unsqueeze(-1) * matrix[..., j, :].unsqueeze(-2)
        target = target - share * target[..., j : j + 1]
        solved.append((j, keep, pivot))
    ordered = sorted(solved, key=lambda column: column[0])
    kept = torch.stack([keep for _, keep, _ in ordered], dim=-1)
    pivots = torch.stack([pivot for _, _, pivot in ordered], dim=-1)
    weights = torch.where(kept, target / pivots / length, 0.0)
    return torch.where(weights.isfinite().all(dim=-1, keepdim=True), weights, 0.0)
