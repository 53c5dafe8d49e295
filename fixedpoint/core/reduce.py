"""Inner products, norms and combinations of rows whose bits do not depend on the other rows.

A batched matrix-vector kernel, or one sum split over threads, may round a row differently alone than in a batch. Here a
row is always cut into the same chunks, multiplied elementwise and summed chunk by chunk, so that solving a row alone
and in a batch gives the same answer bit for bit. The sums of chunks are added in float64. Chunks are small enough to
stay in cache: each column is read from memory once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["add_combination", "add_combinations", "block_dots", "block_norms", "row_dots", "row_norms", "vecdot"]

# Entries of one row, over all its columns, that are processed at a time. The number must not depend on the number of
# rows (see above), and must stay below 32768, from where on torch splits a single sum over threads.
_CHUNK = 4096
# Entries processed at a time, over rows and columns: what fits into the cache of a CPU, or else fills the device.
# It does not change any sum.
_TILE, _LARGE_TILE = 1 << 20, 1 << 26
# The same where all columns of some rows are multiplied at once: the products must fit into the cache as well.
_SMALL_TILE = 1 << 18
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
    if blocks == 1 and count and size <= _CHUNK:
        some = max((_SMALL_TILE if columns.device.type == "cpu" else _LARGE_TILE) // (count * size), 1)
        parts = [_products(c, v) for c, v in _pairs(columns, vector.unsqueeze(1), 0, some)]
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).unsqueeze(1)
    if blocks == 1 and count and size > _CHUNK and not torch.is_grad_enabled():
        return _long_dots(columns, vector).unsqueeze(1)
    grouped = columns.unflatten(-1, (blocks, size))
    target = vector.unflatten(-1, (blocks, size)).unsqueeze(1)
    width = max(_CHUNK // max(count, 1), 1)
    sums = [
        reduce(torch.add, [_products(c, v) for c, v in _pairs(part, piece, 3, width)])
        for part, piece in _pairs(grouped, target, 2, max(width // size, 1))
    ]
    return (torch.cat(sums, dim=2) if len(sums) > 1 else sums[0]).transpose(1, 2)


def _long_dots(columns: Float[Tensor, "B m D"], vector: Float[Tensor, "B D"]) -> Float[Tensor, "B m"]:
    """Return the inner products of long rows: products are added entrywise over the chunks of a span, and summed last.

    This takes one operation per chunk instead of two. Sums in single precision extend over one span of
    ``_LONGEST_SUM`` chunks at most; the sums of spans are added in float64. A tile limits how many spans are processed
    at once.
    """
    rows, count, size = columns.shape
    wide = torch.promote_types(columns.dtype, torch.float32)
    span = _LONGEST_SUM * _CHUNK
    whole = size // span
    spans = torch.zeros(rows, count, -(-size // span), dtype=torch.float64, device=columns.device)
    tiles = max(_tile_of(columns) // (count * _CHUNK), 1)
    left = columns[..., : whole * span].unflatten(-1, (whole, _LONGEST_SUM, _CHUNK)) if whole else columns
    right = vector[..., : whole * span].unflatten(-1, (whole, _LONGEST_SUM, _CHUNK)) if whole else vector
    together = min(tiles, max(whole, 1))
    deep = max(tiles // together, 1)
    held = torch.empty(min(deep, rows) * count * together * _CHUNK, dtype=wide, device=columns.device)
    for first in range(0, rows, deep):
        part = slice(first, min(first + deep, rows))
        for start in range(0, whole, together):
            some = slice(start, min(start + together, whole))
            shape = (part.stop - part.start, count, some.stop - some.start, _CHUNK)
            sums = held[: math.prod(shape)].view(shape)
            for k in range(_LONGEST_SUM):
                one, other = left[part, :, some, k].to(wide), right[part, None, some, k].to(wide)
                torch.mul(one, other, out=sums) if k == 0 else sums.addcmul_(one, other)
            spans[part, :, some] = sums.sum(-1).double()
        if whole * span < size:
            rest = (part.stop - part.start, count, _CHUNK)
            sums = held[: math.prod(rest)].view(rest).zero_()
            for start in range(whole * span, size, _CHUNK):
                entries = slice(start, min(start + _CHUNK, size))
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
        return _largest(grouped)
    scale = None
    if vector.dtype == torch.float64:
        largest = _largest(grouped)
        scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0).unsqueeze(-1)
    squares = _summed_squares(grouped, scale)
    if norm == "rms":
        squares = squares / (vector.shape[1] // blocks)
    roots = _roots(squares)
    return roots if scale is None else roots * scale.squeeze(-1)


def _roots(squares: Float[Tensor, "B blocks"]) -> Float[Tensor, "B blocks"]:
    """Return square roots; while gradients flow, that of zero has the derivative zero, not infinity."""
    if not torch.is_grad_enabled():
        return squares.sqrt()
    # The inner `where` keeps the infinite derivative out of the backward pass, where 0 * inf would be NaN.
    return torch.where(squares == 0, 0.0, torch.where(squares == 0, 1.0, squares).sqrt())


def _summed_squares(grouped: Float[Tensor, "B blocks d"], scale: Tensor | None) -> Float[Tensor, "B blocks"]:
    """Return sums of squares in float64, chunk by chunk; the sums of chunks are added last."""
    rows, blocks, size = grouped.shape
    if size <= _CHUNK:
        if scale is None and not torch.is_grad_enabled():  # saves a copy in float64
            norms: Tensor = torch.linalg.vector_norm(grouped, dim=-1, dtype=torch.float64)
            return norms.square()
        return _squares(grouped, scale)
    whole = size // _CHUNK
    chunks = grouped[..., : whole * _CHUNK].unflatten(-1, (whole, _CHUNK))
    together = max(_tile_of(grouped) // 4 // (rows * blocks * _CHUNK), 1)  # 4: float64 entries, and their squares
    wider = None if scale is None else scale.unsqueeze(-1)
    sums = [_squares(chunks[..., start : start + together, :], wider) for start in range(0, whole, together)]
    if whole * _CHUNK < size:
        sums.append(_squares(grouped[..., whole * _CHUNK :], scale).unsqueeze(-1))
    return torch.cat(sums, dim=-1).sum(-1)


def add_combination(
    base: Float[Tensor, "B D"],
    columns: Float[Tensor, "B m D"],
    weights: Float[Tensor, "B blocks m"],
    out: Float[Tensor, "B D"] | None = None,
) -> Float[Tensor, "B D"]:
    """Return ``base + sum_j weights[:, i, j] columns[:, j]`` in block ``i`` of every row.

    Half-precision columns are summed in single precision. Columns are added one after another, so that further columns
    of weight zero change no bit.

    Parameters
    ----------
    base
        Shape ``(B, D)``.
    columns
        Shape ``(B, m, D)``.
    weights
        Shape ``(B, blocks, m)``.
    out
        Where the result is written, shape ``(B, D)``; may be ``base``. Ignored while gradients flow. None: new memory.
    """
    blocks = weights.shape[1]
    if torch.is_grad_enabled():
        return _combined(base, columns, weights)
    if not columns.shape[1]:
        return base.clone() if out is None else (base if out is base else out.copy_(base))
    target = torch.empty_like(base) if out is None else out
    if blocks == 1 and base.dtype in (torch.float32, torch.float64):
        _add_up((base,), columns, (weights.squeeze(1).to(base.dtype),), (target,))
        return target
    for group, entries in _tiles(blocks, base.shape[1] // blocks):
        target[:, entries] = _combined(base[:, entries], columns[:, :, entries], weights[:, group])
    return target


def _tile_of(tensor: Tensor) -> int:
    """Return the number of entries to process at a time on the tensor's device."""
    return _TILE if tensor.device.type == "cpu" else _LARGE_TILE


def add_combinations(
    bases: tuple[Float[Tensor, "B D"], ...],
    columns: Float[Tensor, "B m D"],
    weights: tuple[Float[Tensor, "B 1 m"], ...],
) -> tuple[Float[Tensor, "B D"], ...]:
    """Return several combinations of the same columns, which are read once; into the bases unless gradients flow."""
    first = bases[0]
    if torch.is_grad_enabled() or not columns.shape[1] or first.dtype not in (torch.float32, torch.float64):
        return tuple(add_combination(base, columns, each) for base, each in zip(bases, weights, strict=True))
    _add_up(bases, columns, tuple(each.squeeze(1).to(first.dtype) for each in weights), bases)
    return bases


def _add_up(
    bases: tuple[Tensor, ...], columns: Float[Tensor, "B m D"], weights: tuple[Tensor, ...], targets: tuple[Tensor, ...]
) -> None:
    """Write combinations into ``targets``, in the dtype of the columns, piece by piece so that they stay in cache."""
    rows, size = bases[0].shape
    width = max(_tile_of(columns) // (rows * len(bases)), 1)
    for start in range(0, size, width):
        entries = slice(start, min(start + width, size))
        pieces = [target[:, entries] for target in targets]
        for base, factors, piece in zip(bases, weights, pieces, strict=True):
            torch.addcmul(base[:, entries], columns[:, 0, entries], factors[:, :1], out=piece)
        for j in range(1, columns.shape[1]):
            for factors, piece in zip(weights, pieces, strict=True):
                piece.addcmul_(columns[:, j, entries], factors[:, j : j + 1])


def _tiles(blocks: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield the blocks and the entries of every chunk of a row: some whole blocks, or a part of one."""
    together = max(_CHUNK // size, 1)
    width = min(together * size, _CHUNK)
    for first in range(0, blocks, together):
        last = min(first + together, blocks)
        for start in range(first * size, last * size, width):
            yield slice(first, last), slice(start, min(start + width, last * size))


def _combined(base: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Return one chunk of a combination: whole blocks, or a part of one."""
    blocks = weights.shape[1]
    wide = torch.promote_types(base.dtype, torch.float32)
    weights = weights.to(wide)
    total = base.to(wide).unflatten(1, (blocks, -1))
    # `unbind` instead of indexing: the backward pass of each indexed piece fills a whole tensor with zeros.
    for column, weight in zip(columns.unbind(1), weights.unbind(2), strict=True):
        total = torch.addcmul(total, column.to(wide).unflatten(1, (blocks, -1)), weight.unsqueeze(2))
    combined: Tensor = total.flatten(1).to(base.dtype)
    return combined


def _pairs(left: Tensor, right: Tensor, dim: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Split two tensors alike along ``dim``, into pieces of at most ``size``."""
    return zip(left.split(size, dim=dim), right.split(size, dim=dim), strict=True)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Return inner products over the last dimension, summed in single precision at least, as float64."""
    wide = torch.promote_types(left.dtype, torch.float32)
    return (left.to(wide) * right.to(wide)).sum(-1).double()


def _squares(chunk: Tensor, scale: Tensor | None) -> Tensor:
    """Return sums of squares over the last dimension in float64, of ``chunk / scale`` where there is a scale."""
    wide = chunk.double() if scale is None else chunk / scale
    return (wide * wide).sum(-1)


def _largest(grouped: Float[Tensor, "B blocks d"]) -> Float[Tensor, "B blocks"]:
    """Return the largest modulus of every block, in float64."""
    # Five to fifteen times as fast on a CPU as the maximum norm of torch.linalg; NaN propagates through both calls.
    return torch.maximum(grouped.amax(dim=-1), grouped.amin(dim=-1).neg()).double()
