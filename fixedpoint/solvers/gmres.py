r"""GMRES: the linear solver of Newton's method and, by default, of adjoint equations.

Solves ``A x = b`` using only products ``A v``. Arnoldi's process builds an orthonormal basis ``V`` of the Krylov space
of ``b``, with ``A V_k = V_{k+1} H_k``, and

    y = argmin || ||b|| e_1 - H_k y ||,     x = V_k y

Givens rotations solve the least-squares problem as the basis grows, so that the residual is known without forming ``x``
(Saad & Schultz 1986, "GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems",
algorithm 4, and section 3.2 for the rotations). After ``memory`` products the method restarts from the residual.

Every row of a batch is a separate system with its own tolerance; a row that is solved takes no further part. ``V`` has
the dtype of ``b``. The small problem is solved in float64 on the host, which waits for the device once per product to
read its next column. For ``A = I - K`` the process may be that of ``K``, whose Krylov space is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_dots, row_norms
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.arnoldi import Arnoldi, Column, rows_last, unit
from fixedpoint.solvers.linear import LinearSolution, LinearSolver, NarrowingProduct, Product, SolutionTolerance
from fixedpoint.solvers.triangle import Triangle

__all__ = ["GMRES"]

# A residual of the recurrence is believed if it is at least this many units of rounding, times the number of products
# and the size of the matrix: by so much the rounding of the products may change it.
_SURE = 32.0
# Inner products of basis vectors up to this number change residual and length by no more than this fraction.
_ORTHOGONAL = 1e-3


@dataclass(frozen=True)
class GMRES(LinearSolver):
    """Generalised minimal residual method for every row separately, using only products with the matrix."""

    memory: int = option(30, ge=1, help="number of products after which it restarts from the residual")

    @torch.no_grad()
    def solve(
        self,
        product: Product,
        b: Float[Tensor, "B D"],
        rtol: float | Float[Tensor, " B"],
        max_products: int | None = None,
        rows: NDArray[np.bool_] | None = None,
        solution_tolerance: SolutionTolerance | None = None,
        *,
        of_identity_minus: bool = False,
        noise: float | None = None,
    ) -> LinearSolution:
        """Solve ``A x = b`` from ``x = 0``; as :meth:`.LinearSolver.solve`, with two more parameters.

        Parameters
        ----------
        product, b, rtol, max_products, rows, solution_tolerance
            As there.
        of_identity_minus
            Whether ``product`` returns ``K v`` where ``A = I - K``. The Krylov space is the same, and images are
            further from their vectors, so that less of them is lost in the orthogonalisation.
        noise
            The relative rounding of a product. Given, the residual of a solved row is computed once more from ``x``
            where the rounding of its products may have changed it, and the row goes on if it has. By default, the
            recurrence is believed.
        """
        size = row_norms(b)
        wanted = rtol * size
        left = 10 * b.shape[1] if max_products is None else max_products
        run = _Run(self, product, b, solution_tolerance, of_identity_minus, noise)
        going, told = rows, None
        if rows is None:
            told = rows_last(size.unsqueeze(1), wanted.unsqueeze(1))
            going = told[0][0] > told[1][0]
        assert going is not None  # either given or told
        return run.solved(size, wanted, going, left)


class _Run:
    """One solve: cycles, and the restarts between them."""

    def __init__(
        self,
        by: GMRES,
        product: Product,
        b: Float[Tensor, "B D"],
        tolerance: SolutionTolerance | None,
        of_identity_minus: bool,
        noise: float | None,
    ) -> None:
        self.by, self.product, self.b, self.tolerance = by, product, b, tolerance
        self.of_identity_minus, self.noise = of_identity_minus, noise

    def solved(
        self, size: Float[Tensor, " B"], wanted: Float[Tensor, " B"], going: NDArray[np.bool_], left: int
    ) -> LinearSolution:
        """Return the solution of the rows ``going``, of residuals ``wanted``, by ``left`` products at most."""
        b, count = self.b, len(self.b)
        x: Tensor | None = None
        rest, length, made = b, size, 0
        residual = np.zeros(count)
        begun = allowed = scale = None
        met = np.zeros(count, dtype=np.bool_)
        last: NDArray[np.float64] | None = None
        while made < left and going.any():
            cycle = _Cycle(self, rest, length, wanted, going, min(self.by.memory, left - made, b.shape[1]), x)
            cycle.run()
            made += cycle.used
            correction = cycle.correction()
            x = correction if x is None else x + correction
            if begun is None:
                begun, residual, allowed, scale = cycle.begun, cycle.residual, cycle.allowed, cycle.scale
                last = begun
            else:
                assert allowed is not None  # set with `begun`
                assert scale is not None
                residual, allowed = np.where(going, cycle.residual, residual), np.where(going, cycle.allowed, allowed)
                scale = np.where(going, cycle.scale, scale)
            met = np.where(going, cycle.met, met)
            doubted = met & going & cycle.doubted
            going = cycle.promising | doubted
            if made < left and going.any():
                rest = b - self._applied(x, going)
                made += 1
                length = row_norms(rest)
                ((now,),) = rows_last(length.unsqueeze(1))
                residual = np.where(going, now, residual)
                met = np.where(going, residual <= allowed, met)
                assert last is not None  # set with `begun`
                # Where a whole cycle has gained nothing, what is left is the rounding of the products.
                lost = doubted & ~(residual < 0.5 * last)
                last = np.where(going, residual, last)
                going = going & ~met & ~lost
        if begun is None:
            begun, wanted_host = (each[0] for each in rows_last(size.unsqueeze(1), wanted.unsqueeze(1)))
            residual, met, scale = begun, begun <= wanted_host, np.zeros(count)
        with np.errstate(all="ignore"):
            relative = np.where(begun == 0, 0.0, residual / begun)
        met = met | (begun == 0)
        x = torch.zeros_like(b) if x is None else x
        return LinearSolution(x, torch.from_numpy(relative), torch.from_numpy(met), made, scale, residual)

    def _applied(self, x: Float[Tensor, "B D"], rows: NDArray[np.bool_]) -> Float[Tensor, "B D"]:
        """``A x``."""
        image = self.product(x, rows)
        return x - image if self.of_identity_minus else image


class _Cycle:
    """One cycle of GMRES, between two restarts.

    The basis is on the device. Everything else is on the host, in arrays whose last dimension is the rows that are
    present. The host reads the lengths and tolerances together with the first product, to save a synchronisation. Once
    half of the rows are done, the corrections of these rows are computed and the others are compacted: ``place`` holds
    their indices in the batch.
    """

    def __init__(
        self,
        run: _Run,
        rest: Float[Tensor, "B D"],
        length: Float[Tensor, " B"],
        wanted: Float[Tensor, " B"],
        active: NDArray[np.bool_],
        memory: int,
        x: Float[Tensor, "B D"] | None,
    ) -> None:
        count = len(rest)
        self.of_identity_minus, self.noise, self.memory = run.of_identity_minus, run.noise, memory
        self.tolerance = None if run.tolerance is None else run.tolerance.rtol
        self.point = None if run.tolerance is None else run.tolerance.point
        if self.tolerance is not None and x is not None:
            self.point = x if self.point is None else self.point + x
        self.product: Product = run.product
        self.rows = active
        self.used = 0
        self._first = [length.unsqueeze(1), wanted.unsqueeze(1)]
        if self.point is not None:
            self._first.append(row_norms(self.point).square().unsqueeze(1))
        self.begun, self.residual, self.allowed, self.scale, self.reach = np.zeros((5, count))
        self.met = np.zeros(count, dtype=np.bool_)
        self.doubted = np.zeros(count, dtype=np.bool_)
        self.place = np.arange(count)
        self.active = active  # of the rows that are present
        everyone = bool(active.all())
        mask = torch.ones_like(length, dtype=torch.bool) if everyone else to_device(active, rest.device)
        least, orthogonality = 1.0 if self.of_identity_minus else 0.0, None if self.noise is None else _ORTHOGONAL
        self.arnoldi = Arnoldi(unit(rest, length, mask), memory + 1, least, orthogonality)
        self.beside: list[NDArray[np.float64]] = []  # components of the point along the basis
        self.square = np.zeros(count)  # of the point
        self._found: Tensor | None = None

    @property
    def promising(self) -> NDArray[np.bool_]:
        """The rows for another cycle: not solved, and not stagnated, since a stagnated row would do no better."""
        found: NDArray[np.bool_] = self.rows & ~self.met & (self.residual < self.begun * (1 - 1e-3))
        return found

    @np.errstate(all="ignore")  # a row that overflows becomes NaN, and inactive
    def run(self) -> None:
        """Make products until every row is done or the memory is full."""
        while self.used < self.memory:
            image = self.product(self.arnoldi.vector, self.active)
            beside = list(self._first) if not self.used else []
            if self.point is not None:
                beside.append(row_dots(self.arnoldi.vector.unsqueeze(1), self.point))
            column, numbers = self.arnoldi.components(image, *beside)
            if not self.used:
                self._begin(numbers)
            if self.point is not None:
                self.beside.append(numbers[-1][0])
            self._rotate(column)
            self.used += 1
            self._meet(column)
            done = ~self.active
            if done.all():
                return
            if self.used == self.memory:
                return
            remainder = np.where(done, 0.0, column.remainder) if done.any() else column.remainder
            self.arnoldi.append(remainder)
            if 2 * int(done.sum()) >= len(done):
                self._compact()

    def _begin(self, numbers: list[NDArray[np.float64]]) -> None:
        """Take what the host was told with the first product."""
        self.begun, self.wanted = numbers[0][0], numbers[1][0]
        self.residual = self.begun.copy()
        self.triangle = Triangle(np.where(self.active, self.begun, 0.0))
        if self.point is not None:
            self.square = numbers[2][0]

    def _rotate(self, column: Column) -> None:
        """Append the next column of ``H`` to the triangle."""
        along, last, least = column.along, column.remainder, column.length
        if self.of_identity_minus:
            along, last, least = -along, -last, np.maximum(least, 1.0)
            along[-1] += 1.0
        self.reach = np.maximum(self.reach, least)
        self.triangle.append(along, last, 10 * torch.finfo(self.arnoldi.vector.dtype).eps * least)

    def _meet(self, column: Column) -> None:
        """Find the rows that are within their tolerance, and those that have no further direction."""
        here, active = self.place, self.active
        residual, allowed, scale = self.triangle.residual, self.wanted, self.scale
        if self.tolerance is not None:
            scale = self.triangle.length(self.square, self.beside)
            allowed = np.maximum(allowed, self.tolerance * scale)
        met = active & (residual <= allowed)
        over = met | (column.remainder == 0)
        whole = self._found is None
        for kept, new in ((self.residual, residual), (self.allowed, allowed), (self.scale, scale)):
            if kept is not new:
                kept[here] = np.where(active, new, kept if whole else kept[here])
        if met.any():
            self.met[here] |= met
            if self.noise is not None:
                self.doubted[here] |= met & (residual_floor(self.noise, self.used, self.reach) * scale > allowed)
        if over.any():
            self.active = active & ~over
            self.triangle.end(self.active)

    def correction(self) -> Float[Tensor, "B D"]:
        """The correction ``V y`` of every row of the batch."""
        last = self.arnoldi.combination(self.triangle.coefficients())
        if self._found is None:
            return last
        return self._found.index_copy(0, to_device(self.place, last.device), last)

    def _compact(self) -> None:
        """Compute the corrections of the rows that are done, and drop them."""
        going, done = np.flatnonzero(self.active), np.flatnonzero(~self.active)
        device = self.arnoldi.vector.device
        found = self.arnoldi.combination(self.triangle.coefficients(done), done)
        if self._found is None:
            self._found = found.new_zeros(len(self.rows), found.shape[1])
        self._found.index_copy_(0, to_device(self.place[done], device), found)
        self.product = _narrowed(self.product, going, len(self.place), self._expected(going))
        self.place, self.active = self.place[going], self.active[going]
        self.arnoldi.keep(going)
        if self.point is not None:
            self.point = self.point[to_device(going, device)]
        self.triangle.keep(going)
        self.beside = [each[going] for each in self.beside]
        self.wanted, self.square, self.reach = self.wanted[going], self.square[going], self.reach[going]

    def _expected(self, going: NDArray[np.int64]) -> float:
        """How many products more the slowest of some rows takes, if it goes on as it has until now."""
        here = self.place[going]
        gained = np.log(self.begun[here] / self.residual[here])
        missing = np.log(self.residual[here] / self.allowed[here])
        return float(np.nan_to_num(self.used * missing / gained, nan=np.inf, posinf=np.inf).max(initial=0.0))


def residual_floor(noise: float, products: int, size: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the residual of the recurrence may be from the true one, relative to the length of the solution."""
    floor: NDArray[np.float64] = _SURE * noise * products * size
    return floor


def _narrowed(product: Product, rows: NDArray[np.int64], count: int, expected: float) -> Product:
    """The product with some of ``count`` rows only."""
    if isinstance(product, NarrowingProduct):
        return product.narrowed(rows, expected)

    def narrow(v: Tensor, active: NDArray[np.bool_]) -> Tensor:
        index, mask = to_device(rows, v.device), np.zeros(count, dtype=np.bool_)
        mask[rows] = active
        return product(v.new_zeros(count, v.shape[1]).index_copy(0, index, v), mask)[index]

    return narrow
