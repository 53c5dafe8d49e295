"""The inner products of the columns of Anderson acceleration, for every part of a row, and the weights from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.small import sqrt, summed, where
from fixedpoint.solvers.least_squares import WRITTEN_OUT, solve_small

__all__ = ["Gram", "Sums", "Weights", "weights_of"]

# Smallest residual that a step is taken to predict, relative to the present one: one that has fallen this far is no
# surprise.
_GOOD = 1e-3


@dataclass(frozen=True)
class Gram:
    """The Gram matrix of every part of every row: an array on the host, or a tensor.

    Attributes
    ----------
    products
        Shape ``(m, m, parts, B)``, float64. The rows come last, so that a sum over columns runs along whole rows of
        memory, and has the same order of terms for any number of rows.
    dropped
        Shape ``(m, parts, B)``: the columns that had no weight in the last step, where systems are large enough for
        such a guess to save time. None elsewhere.
    """

    products: Any
    dropped: NDArray[np.bool_] | None = None

    @classmethod
    def zero(cls, rows: int, parts: int, memory: int, device: torch.device | None) -> Gram:
        """Return the matrices of a history without columns, on a device; None: on the host."""
        shape = memory, memory, parts, rows
        if device is None:
            return cls(np.zeros(shape))
        return cls(torch.zeros(shape, dtype=torch.float64, device=device))

    @property
    def parts(self) -> int:
        """The number of parts of a row."""
        return int(self.products.shape[2])

    @property
    def on_host(self) -> bool:
        """Whether this is an array."""
        return not isinstance(self.products, Tensor)

    def with_newest(self, start: int, newest: int, column: Any) -> Gram:
        """Return the matrices with one column replaced, that of slot ``start + newest``.

        Only one row and one column of each matrix change: ``m`` inner products instead of ``m^2``. Arrays are written
        in place.
        """
        products = self.products if self.on_host else self.products.clone()
        used = products[start:, start:]
        used[newest] = column
        used[:, newest] = column
        dropped = self.dropped
        if dropped is not None:
            dropped = dropped.copy()
            dropped[start + newest] = False
        return Gram(products, dropped)

    def after(self, start: int, gamma: Any) -> Gram:
        """Return the matrices after a step with these weights, which belong to the columns from ``start`` on."""
        if not self.on_host or len(self.products) <= WRITTEN_OUT:
            return self
        dropped = np.zeros(self.products.shape[1:], dtype=np.bool_)
        dropped[start:] = gamma == 0.0
        return Gram(self.products, dropped)

    def without(self, rows: Tensor, before: Gram) -> Gram:
        """Return the matrices with those of ``before`` in some rows."""
        return Gram(torch.where(rows, before.products, self.products))

    def turned(self, by: int) -> Gram:
        """Return the matrices with every column moved to a slot lower by that number."""
        if self.on_host:
            dropped = None if self.dropped is None else np.roll(self.dropped, -by, axis=0)
            return Gram(np.roll(self.products, (-by, -by), axis=(0, 1)), dropped)
        return Gram(self.products.roll((-by, -by), (0, 1)))

    def slid(self, move: Callable[[Tensor], Tensor]) -> Gram:
        """Return the matrices with the parts moved to new places; ``move`` takes a tensor ``(B, parts, m, m)``."""
        first = torch.as_tensor(self.products).movedim((3, 2), (0, 1)).clone(memory_format=torch.contiguous_format)
        moved = move(first).movedim((0, 1), (3, 2))
        return Gram(moved.numpy() if self.on_host else moved)

    def select_rows(self, index: Tensor, rows: NDArray[np.int64]) -> Gram:
        """Return the matrices of some rows."""
        if not self.on_host:
            return Gram(self.products[..., index])
        return Gram(self.products[..., rows], None if self.dropped is None else self.dropped[..., rows])

    def copied_rows(self, index: Tensor, rows: NDArray[np.int64]) -> Gram:
        """Return the matrices of some rows, in memory of their own."""
        return self.select_rows(index, rows)

    @classmethod
    def joined(cls, several: Sequence[Gram], order: Tensor) -> Gram:
        """Return the matrices of all rows of several, one after another, and then in this order."""
        parts = [each.products for each in several]
        if several[0].on_host:
            rows = order.cpu().numpy()
            known = [each.dropped for each in several if each.dropped is not None]
            dropped = np.concatenate(known, axis=2)[..., rows] if len(known) == len(several) else None
            return cls(np.concatenate(parts, axis=3)[..., rows], dropped)
        return cls(torch.cat(parts, dim=3)[..., order])


class Sums(NamedTuple):
    """The sums over unknowns from which a step is computed: arrays on the host or tensors, float64, rows last.

    Attributes
    ----------
    rhs
        Shape ``(m, parts, B)``: inner products of all columns with the residual.
    squares, sizes
        Shape ``(parts, B)``: squared norms of residual and value.
    """

    rhs: Any
    squares: Any
    sizes: Any


class Weights(NamedTuple):
    """The weights ``gamma``, shape ``(m, parts, B)``, and what they are expected to leave of the residual.

    ``expected`` is the predicted norm ``||r - dR gamma||`` and ``gain`` its ratio to ``||r||``, shape ``(B,)``; None
    where nobody asks.
    """

    gamma: Any
    expected: Any
    gain: Any


def weights_of(
    gram: Any,
    sums: Sums,
    valid: Any,
    order: Sequence[int],
    eps: float,
    *,
    running: bool,
    threshold: float,
    ridge: float,
    predicts: bool,
    guess: NDArray[np.bool_] | None = None,
) -> Weights:
    """Return the weights of every part.

    Parts whose residual is exactly zero contribute no inner products. With ``running``, the weights of a part are
    computed from the sums over all parts up to and including it.
    """
    rhs, squares, sizes = sums.rhs, sums.squares, sums.sizes
    unsolved = squares > 0
    if isinstance(unsolved, Tensor) or not unsolved.all():
        gram, rhs = where(unsolved, gram, 0.0), where(unsolved, rhs, 0.0)
    if running:
        gram, rhs, sizes = gram.cumsum(2), rhs.cumsum(1), sizes.cumsum(0)
    # A column is a difference of residuals, and carries the rounding of f(z).
    gamma = solve_small(
        gram,
        rhs,
        valid[:, None] & unsolved,
        eps * sqrt(sizes),
        order,
        threshold,
        ridge,
        guess if guess is None else guess[-len(order) :],
    )
    if not predicts:
        return Weights(gamma, None, None)
    total = summed(squares)
    if not len(order):
        fitted = 0.0 * total
    elif not isinstance(rhs, Tensor) and rhs.size == len(order) <= WRITTEN_OUT:
        total, fitted = total.item(), _fitted_floats(gram.reshape(rhs.size, -1), rhs.ravel(), gamma.ravel())
    else:
        # ||r||^2 - ||r - dR gamma||^2; of running sums the last one covers the whole row.
        told = summed(gamma * (2.0 * rhs - summed(gram * gamma[:, None])))
        fitted = told[-1] if running else summed(told)
    some = total != 0  # the square root has no derivative at zero, so solved rows take that of 1
    left, least = total - fitted, _GOOD**2 * total
    expected = sqrt(where(some, where(left > least, left, least), 1.0))
    gain = expected / sqrt(where(some, total, 1.0))
    expected, gain = where(some, expected, 0.0), where(some, gain, 0.0)
    if total.__class__ is float:
        expected, gain = np.array([expected]), np.array([gain])
    return Weights(gamma, expected, gain)


def _fitted_floats(gram: NDArray[np.float64], rhs: NDArray[np.float64], gamma: NDArray[np.float64]) -> float:
    """Return what the weights of a single small system explain; the same arithmetic in plain floats."""
    rows, weights, wanted = gram.tolist(), gamma.tolist(), rhs.tolist()
    fitted = 0.0
    for j, weight in enumerate(weights):
        explained = rows[0][j] * weights[0]
        for k in range(1, len(weights)):
            explained += rows[k][j] * weights[k]
        told = weight * (2.0 * wanted[j] - explained)
        fitted = told if j == 0 else fitted + told
    return fitted
