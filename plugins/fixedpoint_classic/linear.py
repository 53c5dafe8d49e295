r"""Affine maps ``f(z) = A z + b`` with a given spectrum.

    A = V (radius * diag(lambda) + departure * N) V^T

The eigenvalues ``lambda`` are scaled so that the largest modulus is 1, ``V`` is orthogonal, and ``N`` is strictly upper
triangular with 2-norm 1. So ``departure`` is the departure from normality in the 2-norm (Henrici 1962, "Bounds for
iterates, inverses, spectral variation and fields of values of non-normal matrices": the strictly triangular part of a
Schur form). The convergence of Krylov-like methods depends on the distribution of the eigenvalues (Walker & Ni 2011,
"Anderson acceleration for fixed-point iterations", theorem 2.2: Anderson without truncation is GMRES):

    semicircle   that of a symmetric Gaussian matrix: few eigenvalues near both ends (Wigner 1958)
    uniform      on [-1, 1]
    positive     on [0, 1]

If ``A`` is normal, ``f`` is a contraction by ``radius``. With a departure the 2-norm may exceed 1, and the error may
grow before it falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint.tasks.task import Context
from fixedpoint_classic.gradient import gradient_metrics
from fixedpoint_classic.problem import ClassicProblem, RandomTask, apply

__all__ = ["LinearContraction", "LinearProblem"]


@dataclass(eq=False)
class LinearProblem(ClassicProblem):
    """``f(z) = A z + b``.

    Attributes
    ----------
    matrix
        ``A``, shape ``(B, D, D)``.
    offset
        ``b``, shape ``(B, D)``.
    """

    matrix: Float[Tensor, "B D D"]
    offset: Float[Tensor, "B D"]

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return apply(self.matrix, z) + self.offset

    def jacobian(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D D"]:
        return self.matrix

    def reference(self) -> Float[Tensor, "B D"]:
        """The solution of ``(I - A) z = b``, by elimination."""
        identity = torch.eye(self.matrix.shape[1], dtype=self.matrix.dtype, device="cpu")
        solved: Tensor = torch.linalg.solve(identity - self.matrix, self.offset)
        return solved


@dataclass(frozen=True)
class LinearContraction(RandomTask):
    """Affine maps with a given spectral radius, from the start 0; ``b`` is standard normal.

    With a gradient estimator, the metric ``gradient_error`` compares it with the exact gradient with respect to ``b``.
    """

    size: int = option(1000, ge=1, help="D: unknowns of a row")
    radius: float = option(
        0.9, ge=0.0, lt=1.0, help="spectral radius, the asymptotic factor of the error per plain round"
    )
    spectrum: Literal["semicircle", "uniform", "positive"] = option(
        "semicircle", help="distribution of the eigenvalues"
    )
    departure: float = option(0.0, ge=0.0, help="departure from normality; 0: symmetric")

    def draw(self, generator: torch.Generator) -> LinearProblem:
        gaussian = torch.randn(self.size, self.size, generator=generator, dtype=torch.float64, device="cpu")
        values, basis = torch.linalg.eigh(gaussian + gaussian.T)
        offset = torch.randn(1, self.size, generator=generator, dtype=torch.float64, device="cpu")
        if self.spectrum != "semicircle":
            values = torch.rand(self.size, generator=generator, dtype=torch.float64, device="cpu")
            values = values if self.spectrum == "positive" else 2 * values - 1
        matrix = (basis * (self.radius * values / values.abs().amax())) @ basis.T
        if self.departure and self.size > 1:
            upper = torch.randn(self.size, self.size, generator=generator, dtype=torch.float64, device="cpu").triu(1)
            matrix = matrix + self.departure * basis @ (upper / torch.linalg.matrix_norm(upper, 2)) @ basis.T
        else:
            matrix = (matrix + matrix.T) / 2  # rounding leaves the product slightly asymmetric
        return LinearProblem(torch.zeros_like(offset), matrix.unsqueeze(0), offset)

    def differentiated(
        self, problem: ClassicProblem, exact: Float[Tensor, "B D"], context: Context
    ) -> dict[str, float]:
        return {} if context.gradient is None else gradient_metrics(problem, exact, context)
