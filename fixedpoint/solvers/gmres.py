r"""GMRES: the linear solver of Newton's method and of adjoints.

For ``A x = b`` with nothing but products ``A v``: Arnoldi's orthonormal basis ``V`` of the Krylov space of ``b``, with
``A V_k = V_{k+1} H_k``, and

    y = argmin || ||b|| e_1 - H_k y ||,     x = V_k y

the least-squares problem by Givens rotations as the basis grows, so that the residual is known without forming ``x``
(Saad & Schultz 1986, "GMRES: a generalized minimal residual algorithm for solving nonsymmetric linear systems",
algorithm 4, and section 3.2 for the rotations), anew from the residual after ``memory`` products.

Every row of a batch is a system of its own, with its own tolerance; one that is done takes no further part. ``V`` is
in the dtype of ``b``, the small problem in float64, orthogonalisation classical and done twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint.core.reduce import add_combination, row_norms
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.arnoldi import orthogonalised, unit
from fixedpoint.solvers.linear import LinearSolution, LinearSolver, Product

__all__ = ["GMRES"]


@dataclass(frozen=True)
class GMRES(LinearSolver):
    """Generalised minimal residuals, per row, without a matrix."""

    memory: int = option(30, ge=1, help="products before it starts anew from the residual")

    def solve(
        self,
        product: Product,
        b: Float[Tensor, "B D"],
        rtol: float | Float[Tensor, " B"],
        max_products: int | None = None,
        rows: NDArray[np.bool_] | None = None,
    ) -> LinearSolution:
        size = row_norms(b)
        wanted = rtol * size
        left = 10 * b.shape[1] if max_products is None else max_products
        made = 0
        x, rest, residual = torch.zeros_like(b), b, size
        going = residual > wanted if rows is None else to_device(rows, b.device)
        unfinished = _host(going) if rows is None else rows
        while made < left and unfinished.any():
            cycle = _Cycle(rest, going, wanted, min(self.memory, left - made, b.shape[1]))
            unfinished = cycle.run(product, unfinished)
            made += cycle.used
            x = x + cycle.correction()
            residual, going = torch.where(going, cycle.residual, residual), cycle.promising
            if made < left and unfinished.any():
                rest = b - product(x, unfinished)
                made += 1
                residual = torch.where(going, row_norms(rest), residual)
                going = going & (residual > wanted)
                unfinished = _host(going)
        relative = torch.where(size > 0, residual / torch.where(size > 0, size, 1.0), 0.0)
        return LinearSolution(x, relative, residual <= wanted, made)


class _Cycle:
    """One cycle: the basis, and the triangle that the rotations have made of ``H``."""

    def __init__(
        self, rest: Float[Tensor, "B D"], active: Bool[Tensor, " B"], wanted: Float[Tensor, " B"], memory: int
    ) -> None:
        rows = rest.shape[0]
        device = rest.device
        self.rows, self.active = active, active
        self.wanted = wanted
        self.begun = self.residual = row_norms(rest)
        self.exhausted = torch.zeros_like(active)
        self.basis = rest.new_zeros(rows, memory + 1, rest.shape[1])
        self.basis[:, 0] = unit(rest, self.residual, active)
        self.triangle = torch.zeros(rows, memory, memory, dtype=torch.float64, device=device)
        self.rhs = torch.zeros(rows, memory + 1, dtype=torch.float64, device=device)
        self.rhs[:, 0] = torch.where(active, self.residual, 0.0)
        self.rotations: list[tuple[Tensor, Tensor]] = []

    @property
    def used(self) -> int:
        """Products made."""
        return len(self.rotations)

    @property
    def promising(self) -> Bool[Tensor, " B"]:
        """The rows for another cycle: one that has stagnated would do no better there."""
        return self.rows & (self.residual > self.wanted) & (self.residual < self.begun * (1 - 1e-3))

    def run(self, product: Product, active: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Products until every row is done or the memory is full; :attr:`promising`, on the host.

        Parameters
        ----------
        product
            As for :meth:`GMRES.solve`.
        active
            The rows that take part, on the host.
        """
        promising = active
        for j in range(self.triangle.shape[1]):
            self._extend(product(self.basis[:, j].contiguous(), active), j)
            self.residual = torch.where(self.active, self.rhs[:, j + 1].abs(), self.residual)
            self.active = self.active & (self.residual > self.wanted) & ~self.exhausted
            self.basis[:, j + 1].masked_fill_(~self.active.unsqueeze(1), 0.0)
            active, promising = _host(torch.stack([self.active, self.promising]))
            if not active.any():
                break
        return promising

    def correction(self) -> Float[Tensor, "B D"]:
        """``V y``."""
        used = self.used
        solved = self.rhs[:, :used].clone()
        for i in reversed(range(used)):
            pivot = self.triangle[:, i, i]
            value = torch.where(pivot != 0, solved[:, i] / torch.where(pivot != 0, pivot, 1.0), 0.0)
            solved[:, i] = value
            solved[:, :i] -= self.triangle[:, :i, i] * value.unsqueeze(1)
        basis = self.basis[:, :used]
        return add_combination(torch.zeros_like(basis[:, 0]), basis, solved.unsqueeze(1))

    def _extend(self, vector: Float[Tensor, "B D"], j: int) -> None:
        """The next basis vector, and column ``j`` of the triangle; rows that are done stay as they are."""
        vector, column, last, rounding = orthogonalised(self.basis[:, : j + 1], vector)
        self.basis[:, j + 1] = unit(vector, last, self.active)
        entries = [torch.where(self.active, entry, 0.0) for entry in (*column.unbind(1), last)]
        for i, (c, s) in enumerate(self.rotations):
            entries[i], entries[i + 1] = c * entries[i] + s * entries[i + 1], c * entries[i + 1] - s * entries[i]
        length = torch.hypot(entries[j], entries[j + 1])
        length = torch.where(length > rounding, length, 0.0)  # a singular system: this direction changes nothing
        safe = torch.where(length > 0, length, 1.0)
        c, s = torch.where(length > 0, entries[j] / safe, 0.0), torch.where(length > 0, entries[j + 1] / safe, 1.0)
        self.rotations.append((c, s))
        self.triangle[:, : j + 1, j] = torch.stack([*entries[:j], length], dim=1)
        head = self.rhs[:, j].clone()
        self.rhs[:, j] = torch.where(self.active, c * head, self.rhs[:, j])
        self.rhs[:, j + 1] = torch.where(self.active, -s * head, 0.0)
        # A row that was done before keeps zero here, so that its part of y is zero.
        self.rhs[:, j] = torch.where(self.active | (length > 0), self.rhs[:, j], 0.0)
        self.exhausted = self.exhausted | (self.active & (last == 0))


def _host(mask: Bool[Tensor, "*any B"]) -> NDArray[np.bool_]:
    host: NDArray[np.bool_] = mask.cpu().numpy()
    return host
