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
the few columns and batched over rows, which come last; on a device there is no hidden synchronisation. A system of a
single row is solved in plain floats, by the same arithmetic: there, an operation on an array takes longer than all of
it. On the host, systems of more than 14 columns are left to LAPACK, one by one: Cholesky's factorisation has the same
pivots. So a row has the same bits in every batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.small import isfinite, sqrt, summed, where

__all__ = ["WRITTEN_OUT", "solve_gram", "solve_small"]

# Pivots of a float64 Gram matrix with unit diagonal are known to about 1e-16: this keeps five digits of them.
_PIVOT = 1e-11
# What takes a column out of a system, in units of its square.
_HUGE = 1e60
# Larger systems are quicker by LAPACK, one row as well as many.
WRITTEN_OUT = 14
# Rows that are solved at a time: their matrices fit into the cache of a CPU.
_TILE = 2048


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
    last = gram.movedim((-2, -1), (0, 1)), rhs.movedim(-1, 0), valid.movedim(-1, 0), noise
    if gram.device.type == "cpu" and not torch.is_grad_enabled():
        matrix, target, usable, least = (part.numpy() for part in last)
        found = solve_small(matrix, target, usable, least, order, threshold, ridge)
        return torch.from_numpy(found).movedim(0, -1).contiguous()
    solved: Tensor = solve_small(*last, order, threshold, ridge)
    return solved.movedim(0, -1)


def solve_small(
    gram: Any,
    rhs: Any,
    valid: Any,
    noise: Any,
    order: Sequence[int],
    threshold: float = 0.0,
    ridge: float = 0.0,
    guess: NDArray[np.bool_] | None = None,
) -> Any:
    """Return the weights as :func:`solve_gram` does, of arrays or of tensors whose batch comes last.

    Parameters
    ----------
    gram
        Shape ``(m, m, *batch)``.
    rhs, valid
        Shape ``(m, *batch)``.
    noise
        Shape ``(*batch,)``.
    order, threshold, ridge
        As there.
    guess
        Shape ``(m, *batch)``: columns that are likely to be dropped, as those of the last system. It saves time only.
    """
    if not order:
        return rhs
    newest_first = list(order)
    floor = max(_PIVOT, threshold**2), ridge
    if isinstance(gram, Tensor):
        both = _picked(_picked(gram, order).transpose(0, 1), order)  # it is symmetric
        solved = _solved(both, _picked(rhs, order), _picked(valid, order), noise, *floor)
        return _picked(solved, [newest_first.index(place) for place in range(len(order))])
    if len(order) > WRITTEN_OUT:
        return _by_cholesky(gram, rhs, valid, noise, newest_first, *floor, guess)
    if rhs.size == len(order):
        numbers = _solved_floats(
            gram.reshape(len(order), -1).tolist(),
            rhs.ravel().tolist(),
            valid.ravel().tolist(),
            noise.item(),
            order,
            *floor,
        )
        return np.array(numbers).reshape(rhs.shape)
    wide = [part.reshape(*part.shape[:kept], -1) for part, kept in ((gram, 2), (rhs, 1), (valid, 1), (noise, 0))]
    found = np.empty(wide[1].shape)
    with np.errstate(all="ignore"):
        for first in range(0, wide[1].shape[1], _TILE):
            some = [part[..., first : first + _TILE] for part in wide]
            parts = some[0][newest_first][:, newest_first], some[1][newest_first], some[2][newest_first]
            found[newest_first, first : first + _TILE] = _solved(*parts, some[3], *floor)
    return found.reshape(rhs.shape)


def _solved(gram: Any, rhs: Any, valid: Any, noise: Any, least: float, ridge: float) -> Any:
    """Return the weights of columns in the order of elimination, of arrays or tensors."""
    count = len(rhs)
    squares = gram.diagonal(0, 0, 1)
    squares = squares.movedim(-1, 0) if isinstance(squares, Tensor) else np.moveaxis(squares, -1, 0)
    usable = valid & (squares > 0) & isfinite(squares)
    length = sqrt(where(usable, squares, 1.0))
    matrix = gram / length[:, None] / length[None]
    target = rhs / length
    floor = noise[None] / length
    floor = floor * floor
    floor = where(floor > least, floor, least) + ridge
    rows = []
    for k in range(count):
        head = matrix[0]
        pivot = head[0] + ridge
        keep = usable[k] if k == 0 else usable[k] & (pivot > floor[k])
        pivot = where(keep, pivot, 1.0)
        # A dropped column is not eliminated: it stays in the matrix, and gets weight zero at the end.
        share = where(keep, head[1:] / pivot, 0.0)
        rows.append((where(keep, target[0] / pivot, 0.0), share))
        matrix = matrix[1:, 1:] - share[:, None] * head[None, 1:]
        target = target[1:] - share * target[0]
    weights = rows[-1][0][None]
    for goal, share in reversed(rows[:-1]):
        weights = _joined((goal - summed(share * weights))[None], weights)
    weights = weights / length
    # A row with an infinite or NaN weight takes a plain step instead.
    return where(isfinite(weights).all(0), weights, 0.0)


def _by_cholesky(
    gram: NDArray[np.float64],
    rhs: NDArray[np.float64],
    valid: NDArray[np.bool_],
    noise: NDArray[np.float64],
    order: list[int],
    least: float,
    ridge: float,
    guess: NDArray[np.bool_] | None,
) -> NDArray[np.float64]:
    """Return the weights of systems of many columns, each by factorisations of LAPACK.

    A column is taken out of a system by a huge entry on the diagonal. Its own pivot is still known, since its row of
    the factor contains what the columns before it explain. So one factorisation tells whether the right columns were
    taken out, and it is repeated, from the first wrong one on, until they were.
    """
    count = len(order)
    diagonal = np.arange(count)
    # Rows first, columns from the newest to the oldest.
    matrix = gram.reshape(count, count, -1)[order][:, order].transpose(2, 0, 1)
    target, usable = rhs.reshape(count, -1)[order].T, valid.reshape(count, -1)[order].T
    out = np.zeros(usable.shape, dtype=np.bool_) if guess is None else guess.reshape(count, -1)[order].T.copy()
    with np.errstate(all="ignore"):
        # The factorisation does not depend on the lengths of columns, so these are left as they are.
        squares = matrix[:, diagonal, diagonal]
        usable = usable & (squares > 0) & (squares < math.inf)
        noise = noise.reshape(-1, 1)
        floor = np.maximum(noise * noise, least * squares) + ridge * squares
        own = (1.0 + ridge) * squares
        # The newest column is never dropped; those that are not usable always are.
        out[:, 0], floor[:, 0] = False, -math.inf
        if not usable.all():
            floor[~usable], own[~usable] = math.inf, 1.0
            out |= ~usable
        weights = np.zeros_like(own)
        left = np.flatnonzero(np.isfinite(matrix.sum(axis=(1, 2))))  # a value that is not finite makes the sum so
        while len(left):
            every = len(left) == len(weights)
            parts: Any = (part if every else part[left] for part in (matrix, own, target, floor, out))
            found, wrong, better = _factored(*parts)
            if not wrong.any():
                weights[left] = found
                break
            weights[left[~wrong]] = found[~wrong]
            out[left] = better
            left = left[wrong]
        weights[~np.isfinite(weights).all(axis=1)] = 0.0
    placed = np.empty((count, len(weights)))
    placed[order] = weights.T
    return placed.reshape(rhs.shape)


def _factored(
    matrix: NDArray[np.float64],
    own: NDArray[np.float64],
    target: NDArray[np.float64],
    floor: NDArray[np.float64],
    out: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the solutions without the columns ``out``, for which systems these are wrong, and better ones."""
    diagonal = np.arange(matrix.shape[1])
    full = matrix.copy()
    full[:, diagonal, diagonal] = np.where(out, _HUGE * own, own)
    factor, info = torch.linalg.cholesky_ex(torch.from_numpy(full))
    explained = np.square(factor.numpy())
    explained[:, diagonal, diagonal] = 0.0
    dropped = ~(own - explained.sum(axis=2) > floor)
    ended = info.numpy()
    if ended.any():  # LAPACK ends at the first pivot that is not positive, and nothing is known of those after it
        told = np.where(ended > 0, ended, len(diagonal) + 1)[:, None]
        dropped = np.where(diagonal < told - 1, dropped, out | (diagonal == told - 1))
    other = dropped != out
    wrong: NDArray[np.bool_] = np.logical_or.reduce(other, axis=1)
    right = torch.from_numpy(np.where(out, 0.0, target)).unsqueeze(2)
    found = torch.cholesky_solve(right, factor).squeeze(2).numpy()
    return np.where(out, 0.0, found), wrong, dropped


def _solved_floats(
    gram: list[list[float]],
    rhs: list[float],
    valid: list[bool],
    noise: float,
    order: Sequence[int],
    least: float,
    ridge: float,
) -> list[float]:
    """Return the weights of a single system, at the places of its columns; the same arithmetic in plain floats."""
    count = len(order)
    length = []
    usable = []
    for j in order:
        square = gram[j][j]
        used = valid[j] and 0.0 < square < math.inf
        usable.append(used)
        length.append(math.sqrt(square) if used else 1.0)
    matrix = []
    for i, (row, size) in enumerate(zip(order, length, strict=True)):
        line = gram[row]
        matrix.append([line[order[j]] / size / length[j] for j in range(i, count)])
    target = [rhs[j] / size for j, size in zip(order, length, strict=True)]
    goals = [0.0] * count
    for k in range(count):
        head = matrix[k]
        pivot = head[0] + ridge
        floor = noise / length[k]
        floor = floor * floor
        if not usable[k] or (k and not pivot > (floor if floor > least else least) + ridge):
            matrix[k] = []
            continue
        own = target[k]
        goals[k] = own / pivot
        shares = [entry / pivot for entry in head[1:]]
        for i, share in enumerate(shares, start=1):
            line = matrix[k + i]
            for j, top in enumerate(head[i:]):
                line[j] -= share * top
            target[k + i] -= share * own
        matrix[k] = shares
    for k in range(count - 2, -1, -1):
        shares = matrix[k]
        if shares:
            total = shares[0] * goals[k + 1]
            for j in range(1, len(shares)):  # not by sum(), which compensates rounding since Python 3.12
                total += shares[j] * goals[k + 1 + j]
            goals[k] -= total
    weights = [0.0] * count
    for goal, size, j in zip(goals, length, order, strict=True):
        weights[j] = goal / size
        if not math.isfinite(weights[j]):
            return [0.0] * count
    return weights


def _joined(one: Any, other: Any) -> Any:
    """Return two arrays or tensors one after the other."""
    return torch.cat([one, other]) if isinstance(one, Tensor) else np.concatenate([one, other])


def _picked(numbers: Tensor, order: Sequence[int]) -> Tensor:
    """Return entries along the first dimension in another order, without an index that would have to be copied."""
    return torch.cat([numbers[place : place + 1] for place in order])
