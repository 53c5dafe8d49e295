r"""Bratu's problem, the solid-fuel ignition model, on the unit square.

    -(u_xx + u_yy) = lambda e^u,     u = 0 on the boundary

discretised by the five-point Laplacian ``L`` on ``n x n`` interior points, ``h = 1 / (n + 1)`` (Glowinski, Keller &
Reinhart 1985, "Continuation-conjugate gradient methods for the least squares solution of nonlinear boundary value
problems"; the test problem of PETSc's SNES ex5). There are two solutions for ``lambda`` below 6.808 and none above; the
reference is the lower one. There are two fixed-point forms:

    picard    u = L^{-1} (lambda e^u)
    jacobi    u_ij = (u_i-1,j + u_i+1,j + u_i,j-1 + u_i,j+1 + h^2 lambda e^{u_ij}) / 4

The first takes a few iterations, each with a Poisson solve; the second takes ``O(n^2)`` cheap iterations.

``L`` is inverted by the discrete sine transform, which diagonalises it, with the eigenvalues ``(4 - 2 cos(i pi h) - 2
cos(j pi h)) / h^2`` (Buzbee, Golub & Nielson 1970, section 2). The transform is a product with a dense matrix, computed
so that the result for a row does not depend on the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint_classic.problem import ClassicProblem, ClassicTask, apply

__all__ = ["Bratu", "BratuProblem"]

Form = Literal["picard", "jacobi"]


@dataclass(eq=False)
class BratuProblem(ClassicProblem):
    """Bratu's problem for several ``lambda`` at once; the state is ``u`` on the grid, flattened, ``D = n^2``.

    Attributes
    ----------
    lam
        ``lambda`` of every row, shape ``(B, 1)``.
    form
        The fixed-point form, ``"picard"`` or ``"jacobi"``.
    size
        ``n``.
    sines
        The matrix of the sine transform, shape ``(n, n)``.
    eigenvalues
        The eigenvalues of ``h^2 L``, shape ``(n, n)``.
    """

    lam: Float[Tensor, "B 1"]
    form: Form = "picard"
    size: int = field(init=False)
    sines: Float[Tensor, "n n"] = field(init=False, repr=False)
    eigenvalues: Float[Tensor, "n n"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.size = math.isqrt(self.start.shape[1])
        if self.size**2 != self.start.shape[1]:
            raise ValueError(f"start must have n^2 unknowns, got {self.start.shape[1]}")
        order = torch.arange(1, self.size + 1, dtype=torch.float64, device="cpu")
        angles = math.pi / (self.size + 1) * order
        sines = math.sqrt(2 / (self.size + 1)) * (angles.unsqueeze(1) * order).sin()
        single = 2 - 2 * angles.cos()
        self.sines = sines.to(self.start)
        self.eigenvalues = (single.unsqueeze(1) + single).to(self.start)

    @property
    def weight(self) -> Float[Tensor, "B 1"]:
        """``h^2 lambda``, the factor of ``e^u``."""
        step = 1 / (self.size + 1)
        return self.lam * (step * step)

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        source = self.weight * z.exp()
        if self.form == "jacobi":
            return (_neighbours(self._grid(z)).flatten(1) + source) / 4
        return self._poisson(self._grid(source)).flatten(1)

    def reference(self) -> Float[Tensor, "B D"]:
        """The lower solution, by Newton's method from zero, which increases monotonically since ``e^u`` is convex."""
        u, best = torch.zeros_like(self.start), torch.full_like(self.lam, torch.inf)
        for _ in range(50):
            source = self.weight * u.exp()
            defect = _neighbours(self._grid(u)).flatten(1) + source - 4 * u
            size = defect.abs().amax(1, keepdim=True)
            if not bool((size < best).any()):  # rounding prevents further progress in every row
                break
            best = size
            u = u + _eliminate(self._grid(4 - source), self._grid(defect)).flatten(1)
        return u

    def checks(self, z: Float[Tensor, "B D"]) -> dict[str, Float[Tensor, " B"]]:
        """The defect of the discrete equation, ``|4u - neighbours - h^2 lambda e^u|``, relative to its source term."""
        source = self.weight * z.exp()
        defect = 4 * z - _neighbours(self._grid(z)).flatten(1) - source
        return {"equation_defect": defect.abs().amax(1).double() / source.abs().amax(1).double()}

    def _grid(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B n n"]:
        return z.reshape(-1, self.size, self.size)

    def _poisson(self, source: Float[Tensor, "B n n"]) -> Float[Tensor, "B n n"]:
        """The solution of ``(h^2 L) u = source``."""
        return self._transform(self._transform(source) / self.eigenvalues)

    def _transform(self, grid: Float[Tensor, "B n n"]) -> Float[Tensor, "B n n"]:
        """The sine transform in both directions, which is its own inverse."""
        once = apply(self.sines, grid)
        return apply(self.sines, once.transpose(1, 2)).transpose(1, 2)


@dataclass(frozen=True)
class Bratu(ClassicTask):
    """Bratu's problem on the unit square, lower branch, from the start 0; the seed changes nothing."""

    size: int = option(32, ge=1, help="n: interior points along a side; D = n^2")
    lam: tuple[float, ...] = option((6.0,), help="lambda of every row, above 0 and at most 6.8; hard towards that")
    form: Form = option("picard", help="picard: with a Poisson solve; jacobi: the slow pointwise form")

    def check(self) -> None:
        if not self.lam or not all(0 < value <= 6.8 for value in self.lam):
            raise self.refuse("lam", f"must be one or more numbers above 0 and at most 6.8, got {self.lam}")

    def build(self, seed: int) -> BratuProblem:
        lam = torch.tensor(self.lam, dtype=torch.float64, device="cpu").unsqueeze(1)
        return BratuProblem(torch.zeros(len(self.lam), self.size**2, dtype=torch.float64, device="cpu"), lam, self.form)


def _neighbours(grid: Float[Tensor, "B n n"]) -> Float[Tensor, "B n n"]:
    """The sum of the four neighbours of every point, zero beyond the boundary."""
    wide = torch.nn.functional.pad(grid, (1, 1, 1, 1))
    return wide[:, :-2, 1:-1] + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]


def _eliminate(diagonal: Float[Tensor, "B n n"], rhs: Float[Tensor, "B n n"]) -> Float[Tensor, "B n n"]:
    """Solves ``diagonal * u - neighbours(u) = rhs`` by block elimination, one line of the grid after another.

    The blocks are ``n x n`` (Golub & Van Loan 2013, "Matrix computations", section 4.5.1); no pivoting is needed on
    the lower branch, where the matrix is positive definite.
    """
    size = diagonal.shape[1]
    side = torch.ones(size - 1, dtype=diagonal.dtype, device="cpu")
    coupling = torch.diag(side, 1) + torch.diag(side, -1)
    inverses: list[Tensor] = []
    partial: list[Tensor] = []
    for line in range(size):
        block, right = torch.diag_embed(diagonal[:, line]) - coupling, rhs[:, line].unsqueeze(2)
        if inverses:
            block, right = block - inverses[-1], right + inverses[-1] @ partial[-1]
        inverses.append(torch.linalg.inv(block))
        partial.append(right)
    found = [inverses[-1] @ partial[-1]]
    for line in range(size - 2, -1, -1):
        found.append(inverses[line] @ (partial[line] + found[-1]))
    return torch.cat(found[::-1], dim=2).transpose(1, 2)
