"""The interface of linear solvers: they solve ``A x = b`` using only products ``A v``, for each row independently."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.options import Options

__all__ = ["LinearSolution", "LinearSolver", "NarrowingProduct", "Product", "SolutionTolerance"]

Product = Callable[[Tensor, NDArray[np.bool_]], Tensor]
"""A function ``product(v, mask)`` that returns ``A v``; see :meth:`LinearSolver.solve`."""


class NarrowingProduct(ABC):
    """A :data:`Product` that can be that of some of its rows, once the others are done."""

    @abstractmethod
    def __call__(self, v: Float[Tensor, "B D"], rows: NDArray[np.bool_]) -> Float[Tensor, "B D"]:
        """``A v``, as a :data:`Product`."""

    @abstractmethod
    def narrowed(self, rows: NDArray[np.int64], expected: float) -> NarrowingProduct:
        """Return the product of some rows, given by their indices, with vectors of these rows only.

        ``expected`` says how many products more will be made of them, as far as that can be told.
        """


@dataclass(frozen=True)
class LinearSolution:
    """The result of a linear solver.

    Attributes
    ----------
    x
        Shape ``(B, D)``, dtype of ``b``: the solution, or the best approximation found.
    residual
        Shape ``(B,)``, float64, on the host: ``||b - A x|| / ||b||``, from the recurrence of the method; 0 where ``b``
        is zero.
    converged
        Shape ``(B,)``, bool, on the host: whether the row is within its tolerance.
    products
        Number of products ``A v`` made in sequence; each is of all rows together.
    length
        Shape ``(B,)``, float64: ``||point + x||``, where a method knows it from its recurrence and was given a
        tolerance relative to the solution; None elsewhere.
    absolute
        Shape ``(B,)``, float64: ``||b - A x||``, where a method stores it; None elsewhere.
    """

    x: Float[Tensor, "B D"]
    residual: Float[Tensor, " B"]
    converged: Bool[Tensor, " B"]
    products: int
    length: NDArray[np.float64] | None = None
    absolute: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class SolutionTolerance:
    """A tolerance relative to the solution: a row is also solved where ``||b - A x|| <= rtol ||point + x||``.

    Attributes
    ----------
    rtol
        Relative tolerance.
    point
        Shape ``(B, D)``: the point from which ``x`` is a step; None: zero.
    """

    rtol: float
    point: Float[Tensor, "B D"] | None = None


class LinearSolver(Options, ABC):
    """A method for linear systems that requires products with the matrix, not the matrix itself."""

    @abstractmethod
    def solve(
        self,
        product: Product,
        b: Float[Tensor, "B D"],
        rtol: float | Float[Tensor, " B"],
        max_products: int | None = None,
        rows: NDArray[np.bool_] | None = None,
        solution_tolerance: SolutionTolerance | None = None,
    ) -> LinearSolution:
        """Solve ``A x = b`` from ``x = 0``. The host waits for the device once per product.

        Parameters
        ----------
        product
            Function ``product(v, mask)`` that returns ``A v``, for ``v`` of shape ``(B, D)``. ``mask``, of shape
            ``(B,)`` on the host, marks the rows whose product is needed; the other rows of ``v`` are zero. Rows must
            not mix.
        b
            Shape ``(B, D)``: the right-hand sides.
        rtol
            Required ``||b - A x|| / ||b||``: one number for all rows, or shape ``(B,)``.
        max_products
            Maximum number of products; default ``10 D``.
        rows
            Shape ``(B,)``, bool, on the host: the rows to solve, if the host knows them. By default these are the rows
            that ``x = 0`` does not solve, and the host waits for the device once more to find them.
        solution_tolerance
            A second tolerance. A row is solved when it meets either of the two.

        Returns
        -------
        LinearSolution
            The solution, and for every row its residual and whether it converged.
        """
