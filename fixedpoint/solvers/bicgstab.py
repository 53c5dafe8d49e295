r"""BiCGSTAB: a linear solver that stores no basis.

Solves ``A x = b`` using only products ``A v``. From ``x = 0`` and ``r = r^ = b``:

    rho   = (r^, r),   p <- r + (rho / rho_old) (alpha / omega) (p - omega v)
    v     = A p,       alpha = rho / (r^, v),    s = r - alpha v
    t     = A s,       omega = (t, s) / (t, t)
    x    <- x + alpha p + omega s,               r <- s - omega t

(van der Vorst 1992, "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for the solution of nonsymmetric linear
systems".) An iteration makes two products. The method stores seven vectors whatever the number of iterations, while
GMRES stores one per product. The residual is not monotone.

Where we differ: every row of a batch is a separate system with its own tolerance, scaled to a right-hand side of unit
length. The best point of a row is returned, not the last. A row that breaks down (``rho``, ``(r^, v)`` or ``omega``
vanishes) restarts from its residual with a new ``r^``, and stops if it has gained nothing since the previous restart.
Vectors are in at least single precision, inner products in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.reduce import row_norms, vecdot
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.linear import LinearSolution, LinearSolver, Product, SolutionTolerance

__all__ = ["BiCGSTAB"]

# An inner product counts as zero below this multiple of the dtype's rounding times the lengths of the two vectors.
_ROUNDINGS = 4.0


@dataclass(frozen=True)
class BiCGSTAB(LinearSolver):
    """Stabilised biconjugate gradients for every row separately, in constant memory, using only products.

    The residual that it reports is that of the recurrence; it is not recomputed as ``b - A x``.
    """

    def solve(
        self,
        product: Product,
        b: Float[Tensor, "B D"],
        rtol: float | Float[Tensor, " B"],
        max_products: int | None = None,
        rows: NDArray[np.bool_] | None = None,
        solution_tolerance: SolutionTolerance | None = None,
    ) -> LinearSolution:
        size = row_norms(b)
        wanted = rtol * torch.ones_like(size)
        usable = (size > 0) & size.isfinite()
        # Unit right-hand sides: inner products of short vectors would underflow, those of long ones overflow.
        unit = b.double() / torch.where(usable, size, 1.0).unsqueeze(1)
        left = 10 * b.shape[1] if max_products is None else max_products
        going = usable & (wanted < 1) if rows is None else usable & to_device(rows, b.device)
        told = going.cpu().numpy() if rows is None else rows
        unit = unit.to(torch.promote_types(b.dtype, torch.float32))
        if solution_tolerance is not None:  # all vectors are in units of ||b||
            point = torch.zeros_like(b) if solution_tolerance.point is None else solution_tolerance.point
            scaled = point.double() / torch.where(usable, size, 1.0).unsqueeze(1)
            solution_tolerance = SolutionTolerance(solution_tolerance.rtol, scaled.to(unit.dtype))
        run = _Run(unit, going, told, wanted, product, b.dtype, solution_tolerance)
        while run.products + 2 <= left and run.host.any():
            run.iterate()
        x = (run.best.double() * torch.where(usable, size, 0.0).unsqueeze(1)).to(b.dtype)
        residual = torch.where(size > 0, run.reached, 0.0)
        return LinearSolution(x, residual, (size == 0) | (usable & (run.reached <= run.allowed)), run.products)


@dataclass
class _Run:
    """The vectors and scalars of the iteration; ``going`` marks the rows that are not done, ``host`` is its copy."""

    r: Float[Tensor, "B D"]
    going: Bool[Tensor, " B"]
    host: NDArray[np.bool_]
    wanted: Float[Tensor, " B"]
    product: Product
    dtype: torch.dtype
    solution_tolerance: SolutionTolerance | None
    products: int = 0

    def __post_init__(self) -> None:
        self.x, self.best = torch.zeros_like(self.r), torch.zeros_like(self.r)
        self.p, self.v, self.shadow = torch.zeros_like(self.r), torch.zeros_like(self.r), self.r.clone()
        ones = torch.ones_like(self.wanted)
        self.rho, self.alpha, self.omega = ones, ones, ones
        self.reached, self.at_start = ones, torch.full_like(ones, torch.inf)
        self.eps = _ROUNDINGS * torch.finfo(self.r.dtype).eps
        self.next_rho = vecdot(self.shadow, self.r)

    def iterate(self) -> None:
        """Make one iteration, with two products, of the rows that are not done."""
        rho = self.next_rho
        beta = _ratio(rho, self.rho) * _ratio(self.alpha, self.omega)
        self.p = self.r + _times(beta, self.p - _times(self.omega, self.v))
        self.v = self._apply(self.p)
        along = vecdot(self.shadow, self.v)
        broken = self.going & (along.abs() <= self.eps * row_norms(self.shadow) * row_norms(self.v))
        alpha = torch.where(self.going & ~broken, _ratio(rho, along), 0.0)
        s = self.r - _times(alpha, self.v)
        self.x = self.x + _times(alpha, self.p)
        self._note(row_norms(s))
        self._tell()
        if not self.host.any():
            return
        t = self._apply(s)
        omega = torch.where(self.going, _ratio(vecdot(t, s), vecdot(t, t)), 0.0)
        # omega is zero in a row that the first half of the step has finished, so its x stays.
        self.x = self.x + _times(omega, s)
        self.r = torch.where(self.going.unsqueeze(1), s - _times(omega, t), self.r)
        self.rho, self.alpha, self.omega = rho, alpha, omega
        self._note(row_norms(self.r))
        self._restart(self.going & (broken | (omega == 0)))
        self._continue()

    @property
    def allowed(self) -> Float[Tensor, " B"]:
        """The largest residual, relative to ``||b||``, at which the best point of a row counts as solved."""
        if self.solution_tolerance is None:
            return self.wanted
        point, rtol = self.solution_tolerance.point, self.solution_tolerance.rtol
        return torch.maximum(self.wanted, rtol * row_norms(self.best if point is None else point + self.best))

    def _continue(self) -> None:
        """Compute ``rho`` for the next iteration; rows where it vanishes restart."""
        rho = vecdot(self.shadow, self.r)
        lost = self.going & (rho.abs() <= self.eps * row_norms(self.shadow) * row_norms(self.r))
        self._restart(lost)
        self.next_rho = torch.where(lost, vecdot(self.shadow, self.r), rho)
        self._tell()

    def _apply(self, vector: Tensor) -> Tensor:
        kept = torch.where(self.going.unsqueeze(1), vector, 0.0)
        self.products += 1
        return self.product(kept.to(self.dtype), self.host).to(self.r.dtype)

    def _note(self, residual: Float[Tensor, " B"]) -> None:
        """Keep the present point of rows where it is the best; rows that are solved or not finite are done."""
        better = self.going & (residual < self.reached)
        self.best = torch.where(better.unsqueeze(1), self.x, self.best)
        self.reached = torch.where(better, residual, self.reached)
        self.going = self.going & residual.isfinite() & (self.reached > self.allowed)

    def _restart(self, rows: Bool[Tensor, " B"]) -> None:
        """Restart ``rows`` from their residuals; those that have gained nothing since the last restart are done."""
        # Less than a thousandth gained since the last restart counts as nothing: another one would not help.
        gained = self.reached < 0.999 * self.at_start
        self.at_start = torch.where(rows, self.reached, self.at_start)
        self.going = self.going & ~(rows & ~gained)
        column = rows.unsqueeze(1)
        self.shadow = torch.where(column, self.r, self.shadow)
        self.p, self.v = torch.where(column, 0.0, self.p), torch.where(column, 0.0, self.v)
        self.rho, self.alpha, self.omega = (
            torch.where(rows, 1.0, number) for number in (self.rho, self.alpha, self.omega)
        )

    def _tell(self) -> None:
        """Copy ``going`` to the host, which waits for the device."""
        self.host = self.going.cpu().numpy()


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """``one / other``; zero where ``other`` is zero."""
    return torch.where(other != 0, one / torch.where(other != 0, other, 1.0), 0.0)


def _times(factor: Float[Tensor, " B"], vector: Float[Tensor, "B D"]) -> Tensor:
    return factor.to(vector.dtype).unsqueeze(1) * vector
