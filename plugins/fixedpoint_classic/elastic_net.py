r"""The elastic net by proximal gradients (ISTA).

    minimise ||A x - b||^2 / 2m + l1 ||x||_1 + l2 ||x||^2 / 2:
    x = S(x - t (Q x - c), t l1) / (1 + t l2),     S(u, k) = sign(u) max(|u| - k, 0)

with ``t = 1 / L``, ``Q = A^T A / m``, ``c = A^T b / m``, ``L`` the largest eigenvalue of ``Q`` (Zou & Hastie 2005,
"Regularization and variable selection via the elastic net", eq. 3, scaled as in Friedman, Hastie & Tibshirani 2010;
Parikh & Boyd 2014, "Proximal algorithms", section 6.5.3, for the operator). ``l2 = 0`` is the lasso. A point is a
minimiser exactly if zero is a subgradient there: ``g = Q x - c + l2 x`` satisfies ``g_i = -l1 sign(x_i)`` where ``x_i``
is not zero, and ``|g_i| <= l1`` where it is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint_classic.problem import ClassicProblem, RandomTask, apply
from fixedpoint_classic.regression import draw_regression, solve_active_sets

__all__ = ["ElasticNet", "ElasticNetProblem"]


@dataclass(eq=False)
class ElasticNetProblem(ClassicProblem):
    """The proximal gradient map of the elastic net.

    Attributes
    ----------
    gram, rhs
        ``Q``, shape ``(B, D, D)``, and ``c``, shape ``(B, D)``.
    largest
        ``L``, shape ``(B, 1)``.
    l1, l2
        The penalties, shape ``(B, 1)``.
    """

    gram: Float[Tensor, "B D D"]
    rhs: Float[Tensor, "B D"]
    largest: Float[Tensor, "B 1"]
    l1: Float[Tensor, "B 1"]
    l2: Float[Tensor, "B 1"]

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        u = z - (apply(self.gram, z) - self.rhs) / self.largest
        shrunk = u.sign() * (u.abs() - self.l1 / self.largest).clamp(min=0)
        return shrunk / (1 + self.l2 / self.largest)

    def reference(self) -> Float[Tensor, "B D"]:
        return solve_active_sets(self, self._with_signs, lambda x: self(x).sign())

    def checks(self, z: Float[Tensor, "B D"]) -> dict[str, Float[Tensor, " B"]]:
        """The largest violation of the optimality condition on the subgradient."""
        gradient = apply(self.gram, z) - self.rhs + self.l2 * z
        away = (gradient + self.l1 * z.sign()).abs()
        violation = torch.where(z == 0, (gradient.abs() - self.l1).clamp(min=0), away)
        return {"kkt_defect": violation.amax(1).double()}

    def _with_signs(self, signs: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """The minimiser if the unknowns have these signs; unknowns with sign 0 are zero."""
        # Rows and columns of the other unknowns become those of the identity, so that all rows have one shape.
        kept = signs.abs()
        matrix = self.gram * kept.unsqueeze(2) * kept.unsqueeze(1) + torch.diag_embed(self.l2 * kept + 1 - kept)
        solved: Tensor = torch.linalg.solve_ex(matrix, self.rhs * kept - self.l1 * signs)[0]
        return solved


@dataclass(frozen=True)
class ElasticNet(RandomTask):
    """Random sparse regression, from zero; about one coefficient in ten is not zero."""

    size: int = option(200, ge=1, help="D: unknowns")
    samples: int = option(100, ge=1, help="m: rows of A")
    correlation: float = option(0.5, ge=0.0, lt=1.0, help="correlation of neighbouring columns of A; hard towards 1")
    noise: float = option(0.1, ge=0.0, help="standard deviation of the noise in b")
    strength: float = option(0.05, gt=0.0, lt=1.0, help="l1, relative to the smallest that makes the answer zero")
    l2: float = option(0.01, ge=0.0, help="the squared penalty; with 0 and fewer samples than unknowns, hard")

    def draw(self, generator: torch.Generator) -> ElasticNetProblem:
        truth = torch.randn(self.size, generator=generator, dtype=torch.float64, device="cpu")
        truth = truth * (torch.rand(self.size, generator=generator, dtype=torch.float64, device="cpu") < 0.1)
        data = draw_regression(generator, self.samples, self.size, self.correlation, truth, self.noise)
        l1 = self.strength * data[1].abs().amax(1, keepdim=True)
        return ElasticNetProblem(torch.zeros_like(data[1]), *data, l1, torch.full_like(l1, self.l2))
