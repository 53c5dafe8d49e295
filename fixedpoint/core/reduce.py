"""Reductions over the unknowns of each row whose bits do not depend on the other rows.

A batched matrix-vector kernel, or one sum split over threads, may round a row differently when it stands alone
than when it stands in a batch. Here a row is always cut into the same chunks, multiplied elementwise and summed
chunk by chunk, in float64, so that solving a row alone and in a batch gives the same answer bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["add_combination", "block_dots", "block_norms", "row_dots", "row_norms"]

# One chunk of every row stays in cache. It must not depend on the number of rows (see above), and must stay
# under the 32768 elements from which torch splits a single sum over threads.
_CHUNK = 4096


def block_dots(
    columns: Float[Tensor, "B m D"], vector: Float[Tensor, "B D"], blocks: int
) -> Float[Tensor, "B blocks m"]:
    """Inner products of every column with the vector, block by block of a row, in float64."""
    grouped = columns.unflatten(-1, (blocks, -1))
    target = vector.unflatten(-1, (blocks, -1)).unsqueeze(1)
    size = grouped.shape[-1]
    sums = [
        _combine([_dots(c, v) for c, v in _pairs(part, piece, -1, _CHUNK)], torch.sum)
        for part, piece in _pairs(grouped, target, 2, max(1, _CHUNK // size))
    ]
    return (torch.cat(sums, dim=2) if len(sums) > 1 else sums[0]).transpose(1, 2)


def _pairs(left: Tensor, right: Tensor, dim: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(left.split(size, dim=dim), right.split(size, dim=dim), strict=True)


def _dots(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() * right.double()).sum(-1)


def row_dots(columns: Float[Tensor, "B m D"], vector: Float[Tensor, "B D"]) -> Float[Tensor, "B m"]:
    """Inner products ``columns[b, j] . vector[b]`` in float64."""
    return block_dots(columns, vector, 1).squeeze(1)


def row_norms(vector: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Euclidean norm of every row, in float64, safe against overflow and underflow of the squares."""
    return block_norms(vector, 1, "l2").squeeze(1)


def block_norms(vector: Float[Tensor, "B D"], blocks: int, norm: str) -> Float[Tensor, "B blocks"]:
    """Norm of every block of every row: ``l2``, ``rms`` or ``max``, in float64.

    NaN stays NaN and Inf stays Inf. Entries are scaled by the block's largest before they are squared, so
    float64 states of size 1e-200 or 1e200 have a norm.
    """
    chunks = vector.unflatten(1, (blocks, -1)).split(_CHUNK, dim=-1)
    largest = _combine([chunk.abs().amax(-1).double() for chunk in chunks], torch.amax)
    if norm == "max":
        return largest
    scale = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest)).unsqueeze(-1)
    squares = _combine([(chunk.double() / scale).square().sum(-1) for chunk in chunks], torch.sum)
    if norm == "rms":
        squares = squares / (vector.shape[1] // blocks)
    return squares.sqrt() * scale.squeeze(-1)


def _combine(pieces: list[Tensor], reduce: Callable[..., Tensor]) -> Tensor:
    return reduce(torch.stack(pieces), dim=0) if len(pieces) > 1 else pieces[0]


def add_combination(
    base: Float[Tensor, "B D"],
    columns: Float[Tensor, "B m D"],
    weights: Float[Tensor, "B blocks m"],
    out: Float[Tensor, "B D"] | None = None,
) -> Float[Tensor, "B D"]:
    """``base + sum_j weights[:, i, j] columns[:, j]`` in block ``i``; into ``out``, which may be ``base``, if given."""
    blocks = weights.shape[1]
    wide = torch.promote_types(base.dtype, torch.float32)  # sums of half-precision columns want more digits
    weights = weights.to(wide)
    in_place = out is not None and wide == base.dtype
    total = base.to(wide).unflatten(1, (blocks, -1))
    target = out.unflatten(1, (blocks, -1)) if out is not None and in_place else None
    for j in range(columns.shape[1]):
        column = columns[:, j].to(wide).unflatten(1, (blocks, -1))
        total = torch.addcmul(total, column, weights[:, :, j : j + 1], out=target)
    combined: Tensor = total.flatten(1).to(base.dtype)
    return combined
