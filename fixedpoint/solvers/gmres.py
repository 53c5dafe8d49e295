r"""GMRES: the linear solver of Newton's method and, by default, of adjoint equations.

Solves ``A x = b`` using only products ``A v``. Arnoldi's process builds an orthonormal basis ``V`` of the Krylov space
of ``b``, with ``A V_k = V_{k+1} H_k``, and

    y = argmin || ||b|| e_1 - H_k y ||,     x = V_k y

Givens rotations solve the least-squares problem as the basis grows, so that the residual is known without forming ``x``
(Saad & Schultz 1986, "GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems",
algorithm 4, and section 3.2 for the rotations). After ``memory`` products the method restarts from the residual.

Every row of a batch is a separate system with its own tolerance; a row that is solved takes no further part. ``V`` has
the dtype of ``b``. The small problem is solved in float64 on the host, which waits for the device once per product to
read its next column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.combine import add_combination
from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_dots, row_norms
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.arnoldi import orthogonalised, unit
from fixedpoint.solvers.linear import LinearSolution, LinearSolver, Product, SolutionTolerance

__all__ = ["GMRES"]


@dataclass(frozen=True)
class GMRES(LinearSolver):
    """Generalised minimal residual method for every row separately, using only products with the matrix."""

    memory: int = option(30, ge=1, help="number of products after which it restarts from the residual")

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
        wanted = rtol * size
        left = 10 * b.shape[1] if max_products is None else max_products
        made, x, rest, length = 0, torch.zeros_like(b), b, size
        residual: NDArray[np.float64] | None = None
        met = np.zeros(len(b), dtype=np.bool_)
        if rows is None:
            residual, tolerance = _host(torch.stack([size, wanted]))
            going = residual > tolerance
        else:
            going = rows
        while made < left and going.any():
            growing = (
                None
                if solution_tolerance is None
                else SolutionTolerance(solution_tolerance.rtol, solution_tolerance.point + x)
            )
            cycle = _Cycle(rest, length, wanted, going, min(self.memory, left - made, b.shape[1]), growing)
            going = cycle.run(product)
            met |= cycle.met
            made += cycle.used
            x = x + cycle.correction()
            residual = cycle.residual if residual is None else np.where(cycle.rows, cycle.residual, residual)
            if made < left and going.any():
                rest = b - product(x, going)
                made += 1
                length = row_norms(rest)
                residual = np.where(going, _host(length), residual)
                going = going & (residual > cycle.wanted)
        found = size if residual is None else to_device(residual, b.device)
        relative = torch.where(size > 0, found / torch.where(size > 0, size, 1.0), 0.0)
        return LinearSolution(x, relative, (found <= wanted) | to_device(met, b.device), made)


class _Cycle:
    """One cycle of GMRES, between two restarts.

    The basis is on the device; the triangle into which the rotations turn ``H`` is on the host. The host reads the
    lengths and tolerances together with the first product, to save a synchronisation. Once half of the rows are done,
    the corrections of these rows are computed and the others are compacted: ``place`` holds their indices in the batch.
    """

    def __init__(
        self,
        rest: Float[Tensor, "B D"],
        length: Float[Tensor, " B"],
        wanted: Float[Tensor, " B"],
        active: NDArray[np.bool_],
        memory: int,
        solution_tolerance: SolutionTolerance | None,
    ) -> None:
        count = rest.shape[0]
        self.rows = self.active = active
        self.used = 0
        self.solution_tolerance = solution_tolerance
        self.point = None if solution_tolerance is None else solution_tolerance.point
        square = torch.zeros_like(length) if self.point is None else row_norms(self.point).square()
        self._told_first = torch.stack([length, wanted, square], dim=1)
        self.wanted = self.begun = self.residual = np.zeros(count)
        self.along = np.zeros((count, memory + 1))  # components of the point along the basis, then its square
        self.met = np.zeros(count, dtype=np.bool_)
        self.exhausted = np.zeros(count, dtype=np.bool_)
        self.place = np.arange(count)
        self.mask = to_device(active, rest.device)
        self.basis = rest.new_zeros(count, memory + 1, rest.shape[1])
        self.basis[:, 0] = unit(rest, length, self.mask)
        self.triangle = np.zeros((count, memory, memory))
        self.rhs = np.zeros((count, memory + 1))
        self.cosines, self.sines = np.zeros((2, count, memory))
        self._found: Tensor | None = None

    @property
    def promising(self) -> NDArray[np.bool_]:
        """The rows for another cycle: not solved, and not stagnated, since a stagnated row would do no better."""
        found: NDArray[np.bool_] = self.rows & ~self.met & (self.residual < self.begun * (1 - 1e-3))
        return found

    def run(self, product: Product) -> NDArray[np.bool_]:
        """Make products until every row is done or the memory is full; return :attr:`promising`."""
        for j in range(self.triangle.shape[1]):
            vector, along, last, rounding = orthogonalised(self.basis[:, : j + 1], self._image(product))
            self.basis[:, j + 1] = unit(vector, last, self.mask)
            beside = torch.zeros_like(along[:, :1])
            if self.point is not None:
                beside = row_dots(self.basis[:, j : j + 1], self.point)
            # One transfer for everything that the host needs: each is a synchronisation.
            parts = [along, last.unsqueeze(1), rounding.unsqueeze(1), beside] + ([] if j else [self._told_first])
            told = _host(torch.cat(parts, dim=1))
            if j == 0:
                self.begun, self.wanted, self.along[:, -1] = told[:, 4], told[:, 5], told[:, 6]
                self.residual = self.begun.copy()
                self.rhs[:, 0] = np.where(self.active, self.begun, 0.0)
            self.along[:, j] = told[:, j + 3]
            with np.errstate(all="ignore"):  # a row that overflows becomes NaN, and inactive
                self._rotate(told[:, : j + 1], told[:, j + 1], told[:, j + 2])
                self.used += 1
                self._meet()
            active = self.active & ~self.met & ~self.exhausted
            if not active.any():
                break
            if (active != self.active).any():
                self.active = active
                self._leave_out()
        return self.promising

    def _meet(self) -> None:
        """Mark the active rows that are within their tolerance.

        The length of the solution is known without forming it: ``|p + V y|^2 = |p|^2 + 2 y . V^T p + |y|^2``.
        """
        going = np.flatnonzero(self.active[self.place])
        here = self.place[going]
        self.residual[here] = np.abs(self.rhs[going, self.used])
        allowed = self.wanted[here]
        if self.solution_tolerance is not None:
            y, along = self._coefficients(going), self.along[going]
            square = along[:, -1] + (y * (y + 2 * along[:, : self.used])).sum(axis=1)
            allowed = np.maximum(allowed, self.solution_tolerance.rtol * np.sqrt(np.maximum(square, 0.0)))
        self.met[here] = self.residual[here] <= allowed

    def correction(self) -> Float[Tensor, "B D"]:
        """The correction ``V y`` of every row of the batch."""
        last = self._of(np.arange(len(self.place)))
        if self._found is None:
            return last
        return self._found.index_copy(0, to_device(self.place, last.device), last)

    def _image(self, product: Product) -> Float[Tensor, "k D"]:
        """The product with the last basis vector, for the rows that are present."""
        vector = self.basis[:, self.used].contiguous()
        if self._found is None:
            return product(vector, self.active)
        place = to_device(self.place, vector.device)
        return product(torch.zeros_like(self._found).index_copy(0, place, vector), self.active)[place]

    def _leave_out(self) -> None:
        """Take rows that are done out of the cycle: set their vectors to zero or, once half are done, compact."""
        here = self.active[self.place]
        going = np.flatnonzero(here)
        device = self.basis.device
        if 2 * len(going) > len(here):  # compaction copies the basis: too costly for each row that finishes
            self.mask = to_device(here, device)
            self.basis[:, self.used].masked_fill_(~self.mask.unsqueeze(1), 0.0)
            return
        done = np.flatnonzero(~here)
        if self._found is None:
            self._found = self.basis.new_zeros(len(here), self.basis.shape[2])
        self._found.index_copy_(0, to_device(self.place[done], device), self._of(done))
        self.place = self.place[going]
        self.mask = torch.ones(len(going), dtype=torch.bool, device=device)
        self.basis = self.basis[to_device(going, device)]
        self.triangle, self.rhs, self.along = self.triangle[going], self.rhs[going], self.along[going]
        self.point = None if self.point is None else self.point[to_device(going, device)]
        self.cosines, self.sines = self.cosines[going], self.sines[going]

    def _of(self, chosen: NDArray[np.int64]) -> Float[Tensor, "k D"]:
        """``V y`` of some of the rows that are present."""
        solved, basis = self._coefficients(chosen), self.basis[:, : self.used]
        if len(chosen) < len(basis):
            basis = basis[to_device(chosen, basis.device)]
        return add_combination(torch.zeros_like(basis[:, 0]), basis, to_device(solved, basis.device).unsqueeze(1))

    @np.errstate(all="ignore")  # a row that overflows has NaN or Inf here
    def _coefficients(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """``y`` of some of the rows that are present, by back substitution; 0 for a pivot that is zero."""
        used = self.used
        solved, triangle = self.rhs[chosen, :used], self.triangle[chosen, :used, :used]
        pivots = triangle.diagonal(axis1=1, axis2=2)
        regular = pivots != 0
        reciprocal = np.where(regular, 1.0 / np.where(regular, pivots, 1.0), 0.0)
        for i in reversed(range(used)):
            solved[:, i] *= reciprocal[:, i]
            solved[:, :i] -= triangle[:, :i, i] * solved[:, i : i + 1]
        return solved

    def _rotate(self, along: NDArray[np.float64], last: NDArray[np.float64], rounding: NDArray[np.float64]) -> None:
        """Apply the rotations to the next column and append it to the triangle; rows that are done do not change."""
        active, j = self.active[self.place], self.used
        entries = np.where(active[:, None], np.concatenate([along, last[:, None]], axis=1), 0.0)
        for i in range(j):
            c, s, upper, lower = self.cosines[:, i], self.sines[:, i], entries[:, i].copy(), entries[:, i + 1]
            entries[:, i], entries[:, i + 1] = c * upper + s * lower, c * lower - s * upper
        length = np.hypot(entries[:, j], entries[:, j + 1])
        length = np.where(length > rounding, length, 0.0)  # singular: this direction does not reduce the residual
        regular = length > 0
        safe = np.where(regular, length, 1.0)
        c, s = np.where(regular, entries[:, j] / safe, 0.0), np.where(regular, entries[:, j + 1] / safe, 1.0)
        self.cosines[:, j], self.sines[:, j] = c, s
        self.triangle[:, :j, j], self.triangle[:, j, j] = entries[:, :j], length
        head = self.rhs[:, j].copy()
        # A row that was done before has a zero here, so this component of its y is zero.
        self.rhs[:, j] = np.where(active, c * head, np.where(regular, head, 0.0))
        self.rhs[:, j + 1] = np.where(active, -s * head, 0.0)
        self.exhausted[self.place[active & (last == 0)]] = True


def _host(numbers: Float[Tensor, "*any B"]) -> NDArray[np.float64]:
    host: NDArray[np.float64] = numbers.cpu().numpy()
    return host
