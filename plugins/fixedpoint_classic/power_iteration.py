r"""The power method as a fixed point.

    z = A z / ||A z||

for a symmetric positive definite ``A`` with eigenvalues ``1 > 1 - gap >= ...`` (Golub & Van Loan 2013, "Matrix
computations", section 7.3.1). The error falls by the factor ``1 - gap`` per round, and the eigenvector is determined by
``A`` up to its sign. The map is homogeneous of degree zero, so that its Jacobian at the solution maps the solution to
zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_norms
from fixedpoint_classic.problem import ClassicProblem, RandomTask, apply

__all__ = ["PowerIteration", "PowerProblem"]


@dataclass(eq=False)
class PowerProblem(ClassicProblem):
    """The normalised power map.

    Attributes
    ----------
    matrix
        ``A``, shape ``(B, D, D)``, symmetric.
    """

    matrix: Float[Tensor, "B D D"]

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        product = apply(self.matrix, z)
        return product / row_norms(product).unsqueeze(1).to(product)

    def reference(self) -> Float[Tensor, "B D"]:
        """The dominant eigenvector, by the symmetric eigenvalue decomposition, with the sign that suits the start."""
        vectors = torch.linalg.eigh(self.matrix).eigenvectors[..., -1]
        return torch.where((vectors * self.start).sum(1, keepdim=True) < 0, -vectors, vectors)

    def error(self, z: Float[Tensor, "B D"], exact: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """The relative error, up to the sign of the eigenvector."""
        return torch.minimum(super().error(z, exact), super().error(z, -exact))

    def checks(self, z: Float[Tensor, "B D"]) -> dict[str, Float[Tensor, " B"]]:
        """``||A z - (z^T A z) z||`` at the normalised state: zero at every eigenvector."""
        unit = z.double() / row_norms(z).unsqueeze(1)
        product = apply(self.matrix.double(), unit)
        quotient = (product * unit).sum(1, keepdim=True)
        return {"eigen_defect": row_norms(product - quotient * unit)}


@dataclass(frozen=True)
class PowerIteration(RandomTask):
    """The dominant eigenvector of random symmetric matrices, from a random start of unit norm."""

    size: int = option(200, ge=2, help="D: order of the matrix")
    gap: float = option(0.1, gt=0.0, lt=1.0, help="distance of the second eigenvalue from the first, which is 1")

    def draw(self, generator: torch.Generator) -> PowerProblem:
        gaussian = torch.randn(self.size, self.size, generator=generator, dtype=torch.float64, device="cpu")
        basis = torch.linalg.qr(gaussian).Q
        rest = (1 - self.gap) * torch.rand(self.size - 2, generator=generator, dtype=torch.float64, device="cpu")
        values = torch.cat((torch.tensor([1.0, 1 - self.gap], dtype=torch.float64, device="cpu"), rest))
        matrix = (basis * values) @ basis.T
        start = torch.randn(1, self.size, generator=generator, dtype=torch.float64, device="cpu")
        # Averaged with its transpose, since rounding leaves the product slightly asymmetric.
        return PowerProblem(start / start.norm(), ((matrix + matrix.T) / 2).unsqueeze(0))
