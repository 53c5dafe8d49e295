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
from fixedpoint.core.reduce import add_combination, row_dots, row_norms
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
    ) -> LinearSolution:
        size = row_norms(b)
        wanted = torch.as_tensor(rtol, dtype=torch.float64, device=b.device) * size
        left = 10 * b.shape[1] if max_products is None else max_products
        made = 0
        x, rest, residual = torch.zeros_like(b), b, size
        going = residual > wanted
        while made < left and _host(going).any():
            cycle = _Cycle(rest, going, min(self.memory, left - made, b.shape[1]))
            used = cycle.run(product, wanted)
            made += used
            x = x + cycle.correction(used)
            before, residual = residual, torch.where(going, cycle.residual, residual)
            # A row that has stagnated would do no better in another cycle.
            going = going & (residual > wanted) & (residual < before * (1 - 1e-3))
            unfinished = _host(going)
            if made < left and unfinished.any():
                rest = b - product(x, unfinished)
                made += 1
                residual = torch.where(going, row_norms(rest), residual)
                going = going & (residual > wanted)
        relative = torch.where(size > 0, residual / torch.where(size > 0, size, 1.0), 0.0)
        return LinearSolution(x, relative, residual <= wanted, made)


class _Cycle:
    """One cycle: the basis, and the triangle that the rotations have made of ``H``."""

    def __init__(self, rest: Float[Tensor, "B D"], active: Bool[Tensor, " B"], memory: int) -> None:
        rows = rest.shape[0]
        device = rest.device
        self.active = active
        self.residual = row_norms(rest)
        self.exhausted = torch.zeros_like(active)
        self.basis = rest.new_zeros(rows, memory + 1, rest.shape[1])
        self.basis[:, 0] = _unit(rest, self.residual, active)
        self.triangle = torch.zeros(rows, memory, memory, dtype=torch.float64, device=device)
        self.rhs = torch.zeros(rows, memory + 1, dtype=torch.float64, device=device)
        self.rhs[:, 0] = torch.where(active, self.residual, 0.0)
        self.rotations: list[tuple[Tensor, Tensor]] = []

    def run(self, product: Product, wanted: Float[Tensor, " B"]) -> int:
        """Products until every row is done or the memory is full; how many."""
        memory: int = self.triangle.shape[1]
        host = _host(self.active)
        for j in range(memory):
            self._extend(product(self.basis[:, j].contiguous(), host), j)
            self.residual = torch.where(self.active, self.rhs[:, j + 1].abs(), self.residual)
            self.active = self.active & (self.residual > wanted) & ~self.exhausted
            self.basis[:, j + 1].masked_fill_(~self.active.unsqueeze(1), 0.0)
            host = _host(self.active)
            if not host.any():
                return j + 1
        return memory

    def correction(self, used: int) -> Float[Tensor, "B D"]:
        """``V y``."""
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
        before = row_norms(vector)
        basis = self.basis[:, : j + 1]
        column = torch.zeros_like(self.rhs[:, : j + 1])
        for _ in range(2):  # once leaves what rounding has left in the span
            along = row_dots(basis, vector)
            vector = add_combination(vector, basis, -along.unsqueeze(1))
            column = column + along
        last = row_norms(vector)
        # What is left is rounding: the Krylov space is complete, and the row's answer as good as it gets.
        rounding = 10 * torch.finfo(vector.dtype).eps * before
        last = torch.where(last > rounding, last, 0.0)
        self.basis[:, j + 1] = _unit(vector, last, self.active)
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


def _host(mask: Bool[Tensor, " B"]) -> NDArray[np.bool_]:
    host: NDArray[np.bool_] = mask.cpu().numpy()
    return host


def _unit(vector: Float[Tensor, "B D"], size: Float[Tensor, " B"], active: Bool[Tensor, " B"]) -> Float[Tensor, "B D"]:
    usable = active & (size > 0)
    wide = torch.promote_types(vector.dtype, torch.float32)
    factor = torch.where(usable, 1.0 / torch.where(usable, size, 1.0), 0.0)
    return (vector.to(wide) * factor.to(wide).unsqueeze(1)).to(vector.dtype)
