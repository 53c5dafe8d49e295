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

from fixedpoint.core.reduce import row_norms
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.arnoldi import to_host
from fixedpoint.solvers.linear import Product

__all__ = ["Summed", "summed"]

# The number of products that a row may be expected to take, at first and from any later one. Krylov methods take fewer,
# but each costs more beside it, and they begin anew.
_MOST, _MORE = 14, 8
# The shrinking of the first terms is not yet that of later ones: until then, only rows that do not shrink are left.
_EARLY, _SLOW = 2, 0.9
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
def summed(product: Product, g: Float[Tensor, "B D"], rtol: float, noise: float, limit: int) -> Summed:
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
    u, term, made, device = g, g, 0, g.device
    rest: Tensor | None = None
    # Rows are of unit length. Those that are not finite end as soon as they are looked at.
    ((residual,),) = to_host(row_norms(g).unsqueeze(1))
    solved = residual == 0
    going, length = ~solved, residual.copy()
    bound = residual  # of the length of u
    while made < limit and going.any():
        term = product(term, going)
        made += 1
        told = [row_norms(term).unsqueeze(1)]
        if device.type != "cpu":  # told along with the other, since a second transfer would be another wait
            told.append(row_norms(u).unsqueeze(1))
        (now,), *also = to_host(*told)
        ratio, residual = now / residual, np.where(going, now, residual)
        near = going & (now <= rtol * bound)
        done = near
        if near.any():
            ((size,),) = also or to_host(row_norms(u).unsqueeze(1))
            done = near & (now <= rtol * size) & (_SURE * noise * bound <= rtol * size)
            length = np.where(done, size, length)
            solved = solved | done
        missing = np.log(now / rtol) / -np.log(ratio)
        few = missing <= max(_MOST - made, _MORE) if made >= _EARLY else ratio < _SLOW
        left = going & ~done & ~((ratio < 1) & few)
        if made == limit:
            left = going & ~done
        if left.any():
            rest = term if rest is None else torch.where(to_device(left, device).unsqueeze(1), term, rest)
        bound = bound + now
        over = done | left
        if over.any():
            going = going & ~over
            if not going.any():
                break
            term = torch.where(to_device(going, device).unsqueeze(1), term, 0.0)  # and so are its later ones
        u = u + term
    return Summed(u, g if rest is None else rest, solved, residual, length, made)
