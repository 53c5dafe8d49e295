"""Solves the small least-squares problem of multisecant methods from its Gram matrix, in float64.

Minimises ``||r - C w||`` over ``w``, given ``G = C^T C`` and ``b = C^T r``. The columns are first scaled to unit
length, so that neither the scale of the solution nor columns of very different size matter. (A ridge added to unscaled
squared residuals dominates near convergence and defeats the method.) Elimination goes from the newest column to the
oldest. A column that the newer ones already span for the most part is dropped (Pollock & Rebholz 2023, "Filtering for
Anderson acceleration", eq. 3.1: ``|R_ii| < sigma ||c_i||``); the newest is never dropped.

An optional ridge is added to the scaled columns. Nonlinear maps require one when the columns span many scales: a long
old column is informative at the present point only as far as the map is linear in between.

Where we differ: the threshold of the filter follows the rounding of the data. A column is a difference of residuals and
carries noise of size ``eps ||f||``; a remainder below that carries no information. The elimination is written out over
the few columns and batched over rows. It makes no library call, so there is no hidden synchronisation, and a row has
the same bits in every batch.
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
    """Return the weights ``w``, zero for columns that are not valid or were dropped.

    Parameters
    ----------
    gram
        Shape ``(*batch, m, m)``, float64: ``C^T C``.
    rhs
        Shape ``(*batch, m)``, float64: ``C^T r``.
    valid
        Shape ``(*batch, m)``: the columns that may be used.
    order
        Indices of the columns, from the newest to the oldest.
    noise
        Shape ``(*batch,)``, float64: a column shorter than this is rounding noise.
    threshold
        ``sigma``, at least 0 and less than 1: a column is dropped when less than this fraction of it is new.
    ridge
        At least 0: added to the diagonal of the scaled Gram matrix, which is one, so it is relative to each column.
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
        # A dropped column is not eliminated: it stays in the matrix, and gets weight zero at the end.
        share = torch.where(keep.unsqueeze(-1), matrix[..., :, j] / pivot.unsqueeze(-1), 0.0) * others[j]
        matrix = matrix - share.unsqueeze(-1) * matrix[..., j, :].unsqueeze(-2)
        target = target - share * target[..., j : j + 1]
        solved.append((j, keep, pivot))
    ordered = sorted(solved, key=lambda column: column[0])
    kept = torch.stack([keep for _, keep, _ in ordered], dim=-1)
    pivots = torch.stack([pivot for _, _, pivot in ordered], dim=-1)
    weights = torch.where(kept, target / pivots / length, 0.0)
    # A row with an infinite or NaN weight takes a plain step instead.
    return torch.where(weights.isfinite().all(dim=-1, keepdim=True), weights, 0.0)
