r"""The Neumann series: solves ``(I - K) u = g`` by plain steps, in rows that contract fast enough for a few to do.

    t_0 = g,    t_{j+1} = K t_j,    u_k = t_0 + ... + t_{k-1},    g - (I - K) u_k = t_k

so that the last term is the residual, and its length is all that the host has to know. Beside a product this costs a
sum and a length, where a Krylov method orthogonalises. A row is left, with its sum and its residual, as soon as the
shrinking of its terms says that it would take more than a few products. Decisions are made row by row, of numbers of
this row alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.reduce import raw_block_norms
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.arnoldi import rows_last
from fixedpoint.solvers.linear import NarrowingProduct

__all__ = ["Summed", "summed"]

# A row goes on if eight products more are expected to be enough; twelve while its terms tell little. Krylov methods
# take fewer, but each costs more beside it, and they begin anew (benchmarks/adjoints.py).
_SURE_FROM = 3
# The shrinking of the first term is not yet that of later ones: until then, only rows that do not shrink are left.
_EARLY, _SLOW = 2, 0.9
# Rows that are done are dropped once the others are at most this fraction of at least so many rows.
_FRACTION, _ROWS = 0.25, 32
# A residual is believed if it is at least this many units of rounding of the products in it.
_SURE = 32.0


@dataclass(frozen=True)
class Summed:
    """What the series has come to; see :func:`summed`.

    Attributes
    ----------
    u
        Shape ``(B, D)``: the sum.
    rest
        Shape ``(B, D)``: the residual of the rows that are left; not to be used in rows that are solved.
    solved
        Shape ``(B,)``, bool: the rows that are solved.
    residual, length
        Shape ``(B,)``, float64: ``||g - (I - K) u||`` and, in rows that are solved, ``||u||``.
    products
        Number of products in sequence.
    """

    u: Float[Tensor, "B D"]
    rest: Float[Tensor, "B D"]
    solved: NDArray[np.bool_]
    residual: NDArray[np.float64]
    length: NDArray[np.float64]
    products: int


@np.errstate(all="ignore")  # a row that is zero or not finite divides by zero
def summed(product: NarrowingProduct, g: Float[Tensor, "B D"], rtol: float, noise: float, limit: int) -> Summed:
    """Solve ``(I - K) u = g`` in the rows that contract fast enough.

    Parameters
    ----------
    product
        Returns ``K v``.
    g
        Shape ``(B, D)``: rows of unit length, or zero, which is the solution of such a row.
    rtol
        The largest residual, relative to the length of ``u``.
    noise
        The relative rounding of a product.
    limit
        The largest number of products, at least 1.
    """
    count, part, device = len(g), product, g.device
    ((last,),) = rows_last(_norms(g))
    found = _Found(last)
    place, going, bound = np.arange(count), last != 0, last  # of the rows that are present; bound: of the length of u
    u, term, made = g, g, 0
    while made < limit and going.any():
        term = part(term, going)
        made += 1
        told = [_norms(term)]
        if device.type != "cpu":  # told along with the other, since a second transfer would be another wait
            told.append(_norms(u))
        (now,), *also = rows_last(*told)
        ratio, last = now / last, now
        done = going & (now <= rtol * bound) & (now < np.inf)
        size = bound
        if done.any():
            size = also[0][0] if also else _lengths(u, done)
            done = done & (now <= rtol * size) & (_SURE * noise * bound <= rtol * size)
        few = ratio < _SLOW if made < _EARLY else now * _power(ratio, made < _SURE_FROM) <= rtol
        left = going & ~done & (~((ratio < 1) & few) if made < limit else True)
        bound = bound + now
        over = done | left
        if over.any():
            found.end(place, done, left, now, size, term)
            going = going & ~over
            if not going.any():
                break
            if len(going) >= _ROWS and going.sum() <= _FRACTION * len(going):
                found.store(place, u)
                kept = np.flatnonzero(going)
                expected = float(np.max(np.log(now[kept] / rtol) / -np.log(ratio[kept])))
                part, index = part.narrowed(kept, expected), to_device(kept, device)
                u, term = u[index], term[index]
                place, going, bound, last = place[kept], going[kept], bound[kept], last[kept]
            else:
                term = torch.where(to_device(going, device).unsqueeze(1), term, 0.0)  # and so are its later ones
        u = u + term
    found.store(place, u)
    assert found.u is not None  # stored above
    return Summed(found.u, g if found.rest is None else found.rest, found.solved, found.residual, found.length, made)


class _Found:
    """What is found, as in :class:`Summed`, while some rows go on; ``length`` are the lengths at first."""

    def __init__(self, length: NDArray[np.float64]) -> None:
        self.u: Tensor | None = None
        self.rest: Tensor | None = None
        self.solved, self.residual, self.length = length == 0, length.copy(), length.copy()

    def end(
        self,
        place: NDArray[np.int64],
        done: NDArray[np.bool_],
        left: NDArray[np.bool_],
        residual: NDArray[np.float64],
        length: NDArray[np.float64],
        term: Tensor,
    ) -> None:
        """Rows end: some are solved, others left with ``term`` as their residual."""
        over = done | left
        self.residual[place[over]] = residual[over]
        self.length[place[done]], self.solved[place[done]] = length[done], True
        if not left.any():
            return
        if self.rest is None and len(place) == len(self.solved):
            self.rest = term
            return
        if self.rest is None:
            self.rest = term.new_zeros(len(self.solved), term.shape[1])
        rows = np.flatnonzero(left)
        some = term[to_device(rows, term.device)]
        self.rest = self.rest.index_copy(0, to_device(place[rows], term.device), some)

    def store(self, place: NDArray[np.int64], u: Tensor) -> None:
        """Store the sums of the rows that are present."""
        if len(place) == len(self.solved):
            self.u = u
        else:
            assert self.u is not None  # stored before rows were dropped
            self.u = self.u.index_copy(0, to_device(place, u.device), u)


def _lengths(u: Float[Tensor, "B D"], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The lengths of some rows; NaN in the others."""
    lengths = np.full(len(u), np.nan)
    chosen = np.flatnonzero(rows)
    some = u if 2 * len(chosen) > len(u) else u[to_device(chosen, u.device)]
    ((found,),) = rows_last(_norms(some))
    lengths[chosen] = found[chosen] if some is u else found
    return lengths


def _norms(vector: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
    """The lengths of rows, by one operation: what is as short as 1e-140 beside a unit vector may count as zero."""
    return raw_block_norms(vector, 1, "l2")


def _power(base: NDArray[np.float64], more: bool) -> NDArray[np.float64]:
    """``base`` to the power 8, or 12 if ``more``, by multiplications, which are faster than logarithms."""
    square = base * base
    fourth = square * square
    eighth: NDArray[np.float64] = fourth * fourth
    return eighth * fourth if more else eighth
