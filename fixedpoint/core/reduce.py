"""Inner products and norms of rows whose bits do not depend on the other rows.

A batched matrix-vector kernel, or one sum split over threads, may round a row differently alone than in a batch. Here a
row is always cut into the same chunks, multiplied elementwise and summed chunk by chunk, so that solving a row alone
and in a batch gives the same answer bit for bit. The sums of chunks are added in float64. Chunks are small enough to
stay in cache: each column is read from memory once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "CHUNK",
    "SMALL_TILE",
    "block_dots",
    "block_norms",
    "largest_moduli",
    "on_host",
    "out_of_range",
    "outside",
    "raw_block_norms",
    "row_dots",
    "row_norms",
    "tile_of",
    "vecdot",
]

# Entries of one row, over all its columns, that are processed at a time. The number must not depend on the number of
# rows (see above), and must stay below 32768, from where on torch splits a single sum over threads.
CHUNK = 4096
# Entries processed at a time, over rows and columns: what fits into the cache of a CPU, or else fills the device.
# It does not change any sum.
_TILE, _LARGE_TILE = 1 << 20, 1 << 26
# The same where all columns of some rows are multiplied at once: the products must fit into the cache as well.
SMALL_TILE = 1 << 18
# Norms of float64 rows within this range are exact to rounding without a scale.
_LEAST, _MOST = 1e-140, 1e140
# Number of chunks whose products are added in the working precision.
_LONGEST_SUM = 16


def block_dots(
    columns: Float[Tensor, "B m D"], vector: Float[Tensor, "B D"], blocks: int
) -> Float[Tensor, "B blocks m"]:
    """Return the inner products of every column with the vector, block by block of a row, in float64.

    Parameters
    ----------
    columns
        Shape ``(B, m, D)``.
    vector
        Shape ``(B, D)``.
    blocks
        Number of equal blocks of a row; must divide ``D``.

    Returns
    -------
    Tensor
        Shape ``(B, blocks, m)``, float64.
    """
    count, size = columns.shape[1], columns.shape[2] // blocks
    if size <= CHUNK and on_host(columns):
        return _short_dots(columns, vector, blocks)
    if blocks == 1 and count and size > CHUNK and not torch.is_grad_enabled():
        return _long_dots(columns, vector).unsqueeze(1)
    grouped = columns.unflatten(-1, (blocks, size))
    target = vector.unflatten(-1, (blocks, size)).unsqueeze(1)
    width = max(CHUNK // max(count, 1), 1)
    sums = [
        reduce(torch.add, [_products(c, v) for c, v in _pairs(part, piece, 3, width)])
        for part, piece in _pairs(grouped, target, 2, max(width // size, 1))
    ]
    return (torch.cat(sums, dim=2) if len(sums) > 1 else sums[0]).transpose(1, 2)


def on_host(tensor: Tensor) -> bool:
    """Whether numpy can compute with a tensor: on a CPU, in single or double precision, while nothing is recorded."""
    known = tensor.dtype in (torch.float64, torch.float32)
    return known and tensor.device.type == "cpu" and not torch.is_grad_enabled() and forward_ad._current_level < 0


def _short_dots(
    columns: Float[Tensor, "B m D"], vector: Float[Tensor, "B D"], blocks: int
) -> Float[Tensor, "B blocks m"]:
    """Return the inner products of short blocks, by numpy, which sums each without a temporary for the products."""
    one, other = columns.detach().numpy(), vector.detach().numpy()
    if blocks == 1:
        found = np.einsum("bmd,bd->bm", one, other)[:, None]
    else:
        (rows, count, _), size = one.shape, other.shape[1] // blocks
        one, other = one.reshape(rows, count, blocks, size), other.reshape(rows, blocks, size)
        found = np.einsum("bmkd,bkd->bkm", one, other)
    return torch.from_numpy(found).double()


def _long_dots(columns: Float[Tensor, "B m D"], vector: Float[Tensor, "B D"]) -> Float[Tensor, "B m"]:
    """Return the inner products of long rows: products are added entrywise over the chunks of a span, and summed last.

    This takes one operation per chunk instead of two. Sums in single precision extend over one span of
    ``_LONGEST_SUM`` chunks at most; the sums of spans are added in float64. A tile limits how many spans are processed
    at once.
    """
    rows, count, size = columns.shape
    wide = torch.promote_types(columns.dtype, torch.float32)
    span = _LONGEST_SUM * CHUNK
    whole = size // span
    spans = torch.zeros(rows, count, -(-size // span), dtype=torch.float64, device=columns.device)
    tiles = max(tile_of(columns) // (count * CHUNK), 1)
    left = columns[..., : whole * span].unflatten(-1, (whole, _LONGEST_SUM, CHUNK)) if whole else columns
    right = vector[..., : whole * span].unflatten(-1, (whole, _LONGEST_SUM, CHUNK)) if whole else vector
    together = min(tiles, max(whole, 1))
    deep = max(tiles // together, 1)
    held = torch.empty(min(deep, rows) * count * together * CHUNK, dtype=wide, device=columns.device)
    for first in range(0, rows, deep):
        part = slice(first, min(first + deep, rows))
        for start in range(0, whole, together):
            some = slice(start, min(start + together, whole))
            shape = (part.stop - part.start, count, some.stop - some.start, CHUNK)
            sums = held[: math.prod(shape)].view(shape)
            for k in range(_LONGEST_SUM):
                one, other = left[part, :, some, k].to(wide), right[part, None, some, k].to(wide)
                torch.mul(one, other, out=sums) if k == 0 else sums.addcmul_(one, other)
            spans[part, :, some] = sums.sum(-1).double()
        if whole * span < size:
            rest = (part.stop - part.start, count, CHUNK)
            sums = held[: math.prod(rest)].view(rest).zero_()
            for start in range(whole * span, size, CHUNK):
                entries = slice(start, min(start + CHUNK, size))
                one, other = columns[part, :, entries].to(wide), vector[part, None, entries].to(wide)
                sums[..., : entries.stop - start].addcmul_(one, other)
            spans[part, :, whole] = sums.sum(-1).double()
    return spans.sum(-1)


def row_dots(columns: Float[Tensor, "B m D"], vector: Float[Tensor, "B D"]) -> Float[Tensor, "B m"]:
    """Return the inner products ``columns[b, j] . vector[b]``, shape ``(B, m)``, float64."""
    return block_dots(columns, vector, 1).squeeze(1)


def vecdot(one: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Return the inner product ``one[b] . other[b]`` of every row, shape ``(B,)``, float64."""
    return row_dots(one.unsqueeze(1), other).squeeze(1)


def row_norms(vector: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Return the Euclidean norm of every row, shape ``(B,)``, float64."""
    return block_norms(vector, 1, "l2").squeeze(1)


def block_norms(vector: Float[Tensor, "B D"], blocks: int, norm: str) -> Float[Tensor, "B blocks"]:
    """Return the norm of every block of every row, shape ``(B, blocks)``, float64.

    NaN stays NaN and Inf stays Inf. Squares are taken in float64; float64 entries are first divided by the block's
    largest, so that the squares of states of size 1e-200 or 1e200 neither underflow nor overflow. The gradient at zero
    is zero.

    Parameters
    ----------
    vector
        Shape ``(B, D)``.
    blocks
        Number of equal blocks of a row; must divide ``D``.
    norm
        ``"l2"``, ``"rms"`` or ``"max"``.
    """
    grouped = vector.unflatten(1, (blocks, -1))
    if norm == "max":
        return largest_moduli(grouped)
    if not torch.is_grad_enabled() and (vector.device.type == "cpu" or vector.dtype != torch.float64):
        found = raw_block_norms(vector, blocks, norm)
        if vector.dtype != torch.float64 or not out_of_range(found.numpy()):
            return found
        # Only the norms out of range are computed anew, so that those of other rows keep their bits.
        return torch.where(torch.from_numpy(outside(found.numpy())), _scaled_norms(grouped, norm), found)
    return _scaled_norms(grouped, norm)


def _scaled_norms(grouped: Float[Tensor, "B blocks d"], norm: str) -> Float[Tensor, "B blocks"]:
    """Return Euclidean norms, of float64 entries divided by the largest of the block."""
    scale = None
    if grouped.dtype == torch.float64:
        largest = largest_moduli(grouped)
        scale = torch.where((largest > 0) & (largest < torch.inf), largest, 1.0).unsqueeze(-1)
    squares = _summed_squares(grouped, scale)
    if norm == "rms":
        squares = squares / grouped.shape[2]
    roots = _roots(squares)
    return roots if scale is None else roots * scale.squeeze(-1)


def raw_block_norms(vector: Float[Tensor, "B D"], blocks: int, norm: str) -> Float[Tensor, "B blocks"]:
    """Return norms as :func:`block_norms` does, by one pass, but squares of float64 entries may leave its range.

    It is for vectors whose norms the host reads: outside of 1e-140 to 1e140 they have to be computed anew.
    """
    size = vector.shape[1] // blocks
    if blocks == 1 and norm == "l2" and size <= CHUNK:
        whole_rows: Tensor = torch.linalg.vector_norm(vector, 2, 1, True, dtype=torch.float64)
        return whole_rows
    grouped = vector.unflatten(1, (blocks, -1)) if blocks > 1 else vector
    if norm == "max":
        return largest_moduli(vector.unflatten(1, (blocks, -1)))
    found: Tensor
    if size <= CHUNK:
        found = torch.linalg.vector_norm(grouped, dim=-1, dtype=torch.float64).view(len(vector), blocks)
    else:
        whole = size // CHUNK
        parts = grouped[..., : whole * CHUNK].unflatten(-1, (whole, CHUNK))
        # Narrower entries are copied in float64 first: some at a time, so that the copy stays in cache.
        some = (
            whole if vector.dtype == torch.float64 else max(tile_of(vector) // 4 // (len(vector) * blocks * CHUNK), 1)
        )
        each = [torch.linalg.vector_norm(part, dim=-1, dtype=torch.float64) for part in parts.split(some, dim=-2)]
        lengths = torch.cat(each, dim=-1) if len(each) > 1 else each[0]
        if whole * CHUNK < size:
            rest = torch.linalg.vector_norm(grouped[..., whole * CHUNK :], dim=-1, keepdim=True, dtype=torch.float64)
            lengths = torch.cat([lengths, rest], dim=-1)
        found = torch.linalg.vector_norm(lengths, dim=-1).view(len(vector), blocks)
    return found / math.sqrt(size) if norm == "rms" else found


def out_of_range(norms: NDArray[np.float64]) -> bool:
    """Whether any norm may have lost digits, as squares left the range of float64; also if it is zero or not finite."""
    if norms.size == 1:
        return not _LEAST < norms.item() < _MOST
    return bool(norms.size and not (norms.min() > _LEAST and norms.max() < _MOST))


def outside(norms: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which norms are out of range."""
    inside: NDArray[np.bool_] = (norms > _LEAST) & (norms < _MOST)
    return ~inside


def _roots(squares: Float[Tensor, "B blocks"]) -> Float[Tensor, "B blocks"]:
    """Return square roots; while gradients flow, that of zero has the derivative zero, not infinity."""
    if not torch.is_grad_enabled():
        return squares.sqrt()
    # The inner `where` keeps the infinite derivative out of the backward pass, where 0 * inf would be NaN.
    return torch.where(squares == 0, 0.0, torch.where(squares == 0, 1.0, squares).sqrt())


def _summed_squares(grouped: Float[Tensor, "B blocks d"], scale: Tensor | None) -> Float[Tensor, "B blocks"]:
    """Return sums of squares in float64, chunk by chunk; the sums of chunks are added last."""
    rows, blocks, size = grouped.shape
    if size <= CHUNK:
        if scale is None and not torch.is_grad_enabled():  # saves a copy in float64
            norms: Tensor = torch.linalg.vector_norm(grouped, dim=-1, dtype=torch.float64)
            return norms.square()
        return _squares(grouped, scale)
    whole = size // CHUNK
    chunks = grouped[..., : whole * CHUNK].unflatten(-1, (whole, CHUNK))
    together = max(tile_of(grouped) // 4 // (rows * blocks * CHUNK), 1)  # 4: float64 entries, and their squares
    wider = None if scale is None else scale.unsqueeze(-1)
    sums = [_squares(chunks[..., start : start + together, :], wider) for start in range(0, whole, together)]
    if whole * CHUNK < size:
        sums.append(_squares(grouped[..., whole * CHUNK :], scale).unsqueeze(-1))
    return torch.cat(sums, dim=-1).sum(-1)


def _pairs(left: Tensor, right: Tensor, dim: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Split two tensors alike along ``dim``, into pieces of at most ``size``."""
    if left.shape[dim] <= size:
        return iter(((left, right),))
    return zip(left.split(size, dim=dim), right.split(size, dim=dim), strict=True)


def tile_of(tensor: Tensor) -> int:
    """Return the number of entries to process at a time on the tensor's device."""
    return _TILE if tensor.device.type == "cpu" else _LARGE_TILE


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Return inner products over the last dimension, summed in single precision at least, as float64."""
    if left.dtype in (torch.float64, torch.float32):
        return (left * right).sum(-1).double()
    return (left.float() * right.float()).sum(-1).double()


def _squares(chunk: Tensor, scale: Tensor | None) -> Tensor:
    """Return sums of squares over the last dimension in float64, of ``chunk / scale`` where there is a scale."""
    wide = chunk.double() if scale is None else chunk / scale
    return (wide * wide).sum(-1)


def largest_moduli(grouped: Float[Tensor, "B blocks d"]) -> Float[Tensor, "B blocks"]:
    """Return the largest modulus of every block, in float64."""
    if grouped.device.type != "cpu" and not torch.is_grad_enabled():
        norms: Tensor = torch.linalg.vector_norm(grouped, torch.inf, -1)
        return norms.double()
    # Five to fifteen times as fast on a CPU as the maximum norm of torch.linalg; NaN propagates through both calls.
    return torch.maximum(grouped.amax(dim=-1), grouped.amin(dim=-1).neg()).double()
