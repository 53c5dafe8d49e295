"""Linear solvers: ``x`` with ``A x = b`` by products ``A v`` alone, every row of a batch a system of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.options import Options

__all__ = ["LinearSolution", "LinearSolver", "OfSolution", "Product"]

Product = Callable[[Tensor, NDArray[np.bool_]], Tensor]


@dataclass(frozen=True)
class LinearSolution:
    """What a linear solver returns.

    Attributes
    ----------
    x
        Shape ``(B, D)``.
    residual
        Shape ``(B,)``, float64: ``||b - A x|| / ||b||`` as the recurrence has it; 0 where ``b`` is zero.
    converged
        Shape ``(B,)``: within the tolerance.
    products
        How many products ``A v`` were made, one after another.
    """

    x: Float[Tensor, "B D"]
    residual: Float[Tensor, " B"]
    converged: Bool[Tensor, " B"]
    products: int


@dataclass(frozen=True)
class OfSolution:
    """A tolerance that grows with what is found: a row is solved, too, where ``||b - A x|| <= rtol ||point + x||``.

    Attributes
    ----------
    rtol
        Relative tolerance.
    point
        Shape ``(B, D)``: what ``x`` is a step from.
    """

    rtol: float
    point: Float[Tensor, "B D"]


class LinearSolver(Options, ABC):
    """A method for linear systems, without a matrix."""

    @abstractmethod
    def solve(
        self,
        product: Product,
        b: Float[Tensor, "B D"],
        rtol: float | Float[Tensor, " B"],
        max_products: int | None = None,
        rows: NDArray[np.bool_] | None = None,
        of_solution: OfSolution | None = None,
    ) -> LinearSolution:
        """Solve ``A x = b`` from ``x = 0``. The host waits for the device once a product.

        Parameters
        ----------
        product
            ``A v`` for ``v`` of shape ``(B, D)``, and a mask ``(B,)`` on the host of the rows that matter (the others
            are zero); rows must not mix.
        b
            The right-hand sides.
        rtol
            Wanted ``||b - A x|| / ||b||``, one for all or one per row.
        max_products
            Stop after so many products; default ``10 D``.
        rows
            Shape ``(B,)``, on the host: the rows to solve, where the host knows them; default: those that ``x = 0``
            does not solve, for which it waits for the device once more.
        of_solution
            A second tolerance, either of which is enough.
        """
