r"""Non-negative least squares by projected gradients.

    minimise ||A x - b||^2 / 2m  over  x >= 0:     x = max(x - (Q x - c) / L, 0)

with ``Q = A^T A / m``, ``c = A^T b / m`` and ``L`` the largest eigenvalue of ``Q`` (Lawson & Hanson 1974, "Solving
least squares problems", chapter 23, whose active-set method is the usual solver; Parikh & Boyd 2014, "Proximal
algorithms", section 4.2, for the iteration). The map is piecewise affine; once the active set is found, the rate of
convergence is ``1 - mu / L``. A point is a solution exactly if it satisfies the Karush-Kuhn-Tucker conditions
``x >= 0``, ``g = Q x - c >= 0``, ``x_i g_i = 0``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint_classic.problem import ClassicProblem, RandomTask, apply
from fixedpoint_classic.regression import draw_regression, solve_active_sets

__all__ = ["NNLS", "NNLSProblem"]


@dataclass(eq=False)
class NNLSProblem(ClassicProblem):
    """The projected gradient map of non-negative least squares.

    Attributes
    ----------
    gram, rhs
        ``Q``, shape ``(B, D, D)``, and ``c``, shape ``(B, D)``.
    largest
        ``L``, shape ``(B, 1)``.
    """

    gram: Float[Tensor, "B D D"]
    rhs: Float[Tensor, "B D"]
    largest: Float[Tensor, "B 1"]

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return (z - (apply(self.gram, z) - self.rhs) / self.largest).clamp(min=0)

    def reference(self) -> Float[Tensor, "B D"]:
        return solve_active_sets(self, self._on_support, lambda x: self(x).sign())

    def checks(self, z: Float[Tensor, "B D"]) -> dict[str, Float[Tensor, " B"]]:
        """``max_i |min(x_i, g_i)|``, which is zero exactly if the Karush-Kuhn-Tucker conditions hold."""
        gradient = apply(self.gram, z) - self.rhs
        return {"kkt_defect": torch.minimum(z, gradient).abs().amax(1).double()}

    def _on_support(self, signs: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The least-squares solution in the unknowns with sign 1; the others are zero."""
        # Rows and columns of the other unknowns become those of the identity, so that all rows have one shape.
        both = signs.unsqueeze(2) * signs.unsqueeze(1)
        solved: Tensor = torch.linalg.solve_ex(self.gram * both + torch.diag_embed(1 - signs), self.rhs * signs)[0]
        return solved


@dataclass(frozen=True)
class NNLS(RandomTask):
    """Random non-negative least squares, from zero; half of the true coefficients are negative."""

    size: int = option(100, ge=1, help="D: unknowns")
    samples: int = option(200, ge=1, help="m: rows of A; at least D, or the answer need not be unique")
    correlation: float = option(0.8, ge=0.0, lt=1.0, help="correlation of neighbouring columns of A; hard towards 1")
    noise: float = option(0.1, ge=0.0, help="standard deviation of the noise in b")

    def check(self) -> None:
        if self.samples < self.size:
            raise self.refuse("samples", f"must be at least the size, {self.size}, got {self.samples}")

    def draw(self, generator: torch.Generator) -> NNLSProblem:
        truth = torch.randn(self.size, generator=generator, dtype=torch.float64, device="cpu")
        data = draw_regression(generator, self.samples, self.size, self.correlation, truth, self.noise)
        return NNLSProblem(torch.zeros_like(data[1]), *data)
