"""Combinations of the columns of rows whose bits do not depend on the other rows.

Columns are added one after another, elementwise, so that a row has the same bits alone and in a batch, and further
columns of weight zero change none. Pieces are small enough to stay in cache: each column is read from memory once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.reduce import CHUNK, SMALL_TILE, on_host, tile_of

__all__ = ["add_combination", "add_combinations"]


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
    size = base.shape[1] // blocks
    if 1 < size <= CHUNK and on_host(base):
        return _short_combination(base, columns, weights, out)
    target = torch.empty_like(base) if out is None else out
    if blocks == 1 and base.dtype in (torch.float32, torch.float64):
        _add_up((base,), columns, (weights.squeeze(1).to(base.dtype),), (target,))
        return target
    for group, entries in _tiles(blocks, size):
        target[:, entries] = _combined(base[:, entries], columns[:, :, entries], weights[:, group])
    return target


def _short_combination(
    base: Float[Tensor, "B D"],
    columns: Float[Tensor, "B m D"],
    weights: Float[Tensor, "B blocks m"],
    out: Float[Tensor, "B D"] | None,
) -> Float[Tensor, "B D"]:
    """Return the combination of short blocks, by numpy, which takes one operation for all columns.

    It adds the columns up one after another, too, but for blocks of one entry.
    """
    (rows, count, width), blocks = columns.shape, weights.shape[1]
    factors = np.ascontiguousarray(weights.numpy(), dtype=np.float32 if base.dtype == torch.float32 else np.float64)
    found = torch.empty_like(base) if out is None or out is base else out
    target: Any = found.numpy()
    parts: Any = columns.detach().numpy()
    cut = blocks, width // blocks
    if blocks == 1:
        whole: Any = factors[:, 0]
        np.einsum("bmd,bm->bd", parts, whole, out=target)
    else:
        each: Any = factors
        np.einsum("bmkd,bkm->bkd", parts.reshape(rows, count, *cut), each, out=target.reshape(rows, *cut))
    return torch.add(base, found, out=base if out is base else found)


def add_combinations(
    bases: tuple[Float[Tensor, "B D"], ...],
    columns: Float[Tensor, "B m D"],
    weights: tuple[Float[Tensor, "B 1 m"], ...],
) -> tuple[Float[Tensor, "B D"], ...]:
    """Return several combinations of the same columns, which are read once; into the bases unless gradients flow."""
    first = bases[0]
    short = 1 < columns.shape[2] <= CHUNK and on_host(first)
    known = first.dtype in (torch.float32, torch.float64)
    if torch.is_grad_enabled() or short or not columns.shape[1] or not known:
        return tuple(add_combination(base, columns, each) for base, each in zip(bases, weights, strict=True))
    _add_up(bases, columns, tuple(each.squeeze(1).to(first.dtype) for each in weights), bases)
    return bases


def _add_up(
    bases: tuple[Tensor, ...], columns: Float[Tensor, "B m D"], weights: tuple[Tensor, ...], targets: tuple[Tensor, ...]
) -> None:
    """Write combinations into ``targets``, in the dtype of the columns, piece by piece so that they stay in cache."""
    (rows, count, size), tile = columns.shape, tile_of(columns)
    # Short rows are cut into groups of whole rows, whose columns fit into the cache; long ones into pieces.
    short = columns.device.type == "cpu" and rows > 1 and count * size <= SMALL_TILE
    deep = max(SMALL_TILE // (count * size), 1) if short else rows
    width = size if short else max(tile // (rows * len(bases)), 1)
    for first in range(0, rows, deep):
        some = slice(first, first + deep)
        factors = [each[some].unsqueeze(2).unbind(1) for each in weights]
        for start in range(0, size, width):
            entries = slice(start, start + width)
            whole = deep >= rows and width >= size
            pieces = [each if whole else each[some, entries] for each in targets]
            begun = [each if whole else each[some, entries] for each in bases]
            own = (columns if whole else columns[some, :, entries]).unbind(1)
            for base, factor, piece in zip(begun, factors, pieces, strict=True):
                torch.addcmul(base, own[0], factor[0], out=piece)
            for j in range(1, count):
                for factor, piece in zip(factors, pieces, strict=True):
                    piece.addcmul_(own[j], factor[j])


def _tiles(blocks: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield the blocks and the entries of every chunk of a row: some whole blocks, or a part of one."""
    together = max(CHUNK // size, 1)
    width = min(together * size, CHUNK)
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
