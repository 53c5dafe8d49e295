"""Reductions over the unknowns of each row whose bits do not depend on the other rows.

A batched matrix-vector kernel, or one sum split over threads, may round a row differently when it stands alone
than when it stands in a batch. Here a row is always cut into the same chunks, multiplied elementwise and summed
chunk by chunk, so that solving a row alone and in a batch gives the same answer bit for bit. The sums of chunks are
added one after another, in float64. Chunks are small enough to stay in cache: each column is read from memory once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["add_combination", "block_dots", "block_norms", "row_dots", "row_norms"]

# Entries of one row, over all its columns, that are worked on at a time. Must not depend on the number of rows (see
# above), and must stay under the 32768 from which torch splits a single sum over threads.
_CHUNK = 4096


def block_dots(
    columns: Float[Tensor, "B m D"], vector: Float[Tensor, "B D"], blocks: int
) -> Float[Tensor, "B blocks m"]:
    """Inner products of every column with the vector, block by block of a row, as float64."""
    count, size = columns.shape[1], columns.shape[2] // blocks
    grouped = columns.unflatten(-1, (blocks, size))
    target = vector.unflatten(-1, (blocks, size)).unsqueeze(1)
    width = max(_CHUNK // max(count, 1), 1)
    sums = [
        reduce(torch.add, [_products(c, v) for c, v in _pairs(part, piece, 3, width)])
        for part, piece in _pairs(grouped, target, 2, max(width // size, 1))
    ]
    return (torch.cat(sums, dim=2) if len(sums) > 1 else sums[0]).transpose(1, 2)


def row_dots(columns: Float[Tensor, "B m D"], vector: Float[Tensor, "B D"]) -> Float[Tensor, "B m"]:
    """Inner products ``columns[b, j] . vector[b]``, as float64."""
    return block_dots(columns, vector, 1).squeeze(1)


def row_norms(vector: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Euclidean norm of every row, as float64."""
    return block_norms(vector, 1, "l2").squeeze(1)


def block_norms(vector: Float[Tensor, "B D"], blocks: int, norm: str) -> Float[Tensor, "B blocks"]:
    """Norm of every block of every row: ``l2``, ``rms`` or ``max``, as float64.

    NaN stays NaN and Inf stays Inf. Squares are taken in float64, of float64 entries after scaling by the block's
    largest, so that states of size 1e-200 or 1e200 have a norm.
    """
    chunks = vector.unflatten(1, (blocks, -1)).split(_CHUNK, dim=-1)
    if norm == "max":
        return _largest(chunks)
    scale = None
    if vector.dtype == torch.float64:
        largest = _largest(chunks)
        scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0).unsqueeze(-1)
    squares = reduce(torch.add, [_squares(chunk, scale) for chunk in chunks])
    if norm == "rms":
        squares = squares / (vector.shape[1] // blocks)
    return squares.sqrt() if scale is None else squares.sqrt() * scale.squeeze(-1)


def add_combination(
    base: Float[Tensor, "B D"],
    columns: Float[Tensor, "B m D"],
    weights: Float[Tensor, "B blocks m"],
    out: Float[Tensor, "B D"] | None = None,
) -> Float[Tensor, "B D"]:
    """``base + sum_j weights[:, i, j] columns[:, j]`` in block ``i``; into ``out``, which may be ``base``, if given.

    Sums of half-precision columns are made in single precision.
    """
    blocks = weights.shape[1]
    if torch.is_grad_enabled():
        return _combined(base, columns, weights)
    if not columns.shape[1]:
        return base.clone() if out is None else (base if out is base else out.copy_(base))
    target = torch.empty_like(base) if out is None else out
    for group, entries in _tiles(blocks, base.shape[1] // blocks):
        target[:, entries] = _combined(base[:, entries], columns[:, :, entries], weights[:, group])
    return target


def _tiles(blocks: int, size: int) -> Iterator[tuple[slice, slice]]:
    """The blocks and the entries of every chunk of a row: some whole blocks, or a part of one."""
    together = max(_CHUNK // size, 1)
    width = min(together * size, _CHUNK)
    for first in range(0, blocks, together):
        last = min(first + together, blocks)
        for start in range(first * size, last * size, width):
            yield slice(first, last), slice(start, min(start + width, last * size))


def _combined(base: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """One chunk of a combination: whole blocks, or a part of one."""
    blocks, count = weights.shape[1:]
    wide = torch.promote_types(base.dtype, torch.float32)
    weights = weights.to(wide)
    total = base.to(wide).unflatten(1, (blocks, -1))
    for j in range(count):
        total = torch.addcmul(total, columns[:, j].to(wide).unflatten(1, (blocks, -1)), weights[:, :, j : j + 1])
    combined: Tensor = total.flatten(1).to(base.dtype)
    return combined


def _pairs(left: Tensor, right: Tensor, dim: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(left.split(size, dim=dim), right.split(size, dim=dim), strict=True)


def _products(left: Tensor, right: Tensor) -> Tensor:
    wide = torch.promote_types(left.dtype, torch.float32)
    return (left.to(wide) * right.to(wide)).sum(-1).double()


def _squares(chunk: Tensor, scale: Tensor | None) -> Tensor:
    wide = chunk.double() if scale is None else chunk / scale
    return (wide * wide).sum(-1)


def _largest(chunks: tuple[Tensor, ...]) -> Tensor:
    return reduce(torch.maximum, [chunk.abs().amax(-1).double() for chunk in chunks])
