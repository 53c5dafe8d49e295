r"""SHINE: the backward pass uses the estimate of the inverse Jacobian from the forward solver.

A quasi-Newton method keeps an estimate ``H`` of the inverse Jacobian of ``f(z) - z``, that is, of the inverse of
``J - I``. Hence

    u = (I - J^T)^{-1} g  ~  -H^T g

at the cost of a few inner products. (Ramzi, Mannel, Bai, Starck, Ciuciu & Moreau 2022, "SHINE: SHaring the INverse
Estimate from the forward pass for bi-level optimization and implicit models". The paper also proposes to refine this
estimate, which is done here by steps ``u <- J^T u + g``, and to fall back to the Jacobian-free ``u = g`` where ``u`` is
too long in proportion to ``g``.)

``H`` is Broyden's, or that of Anderson acceleration, which is a multisecant method: ``H = -I + dF (dR^T dR)^{-1} dR^T``
(Fang & Saad 2009, "Two classes of multisecant methods for nonlinear acceleration"). It is exact on the
steps that the solver has taken, and minus the identity elsewhere. The gradient is therefore better the more steps the
solve took. A solve that ends at once has no estimate, and gives the one-step gradient.

Where we differ: by default the fallback is decided by the residual of the adjoint equation, not by the length of ``u``,
which is large wherever the map contracts slowly. A row falls back where ``||J^T u + g - u||`` is larger than the
residual of the one-step gradient, ``||J^T g||``. This test costs two vector-Jacobian products. A row that has converged
keeps its pairs while other rows continue.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.inverse_jacobian import InverseEstimate
from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.solution import Solution
from fixedpoint.gradients.adjoint import scaled_rows
from fixedpoint.gradients.estimator import GradientEstimator, with_gradient_of
from fixedpoint.gradients.recorded import Map, products, recorded
from fixedpoint.gradients.report import AdjointReport

__all__ = ["Shine"]


@dataclass(frozen=True)
class Shine(GradientEstimator):
    """The gradient by the forward solver's estimate of the inverse Jacobian; requires ``broyden`` or ``anderson``.

    After a backward pass ``solution.extras["adjoint"]`` says which rows fell back to the one-step gradient
    (``replaced``), how many products were made and, with ``fallback="residual"``, the residual of the adjoint equation.
    It has no status, since nothing is iterated to a tolerance. Second derivatives and forward mode raise
    ``RuntimeError``.
    """

    refine: int = option(0, ge=0, help="steps of the adjoint iteration from the estimate, one product each")
    fallback: Literal["residual", "norm", "never"] = option(
        "residual",
        help="when a row gets the one-step gradient: when its adjoint residual is smaller (residual), when u is too "
        "long (norm), or never",
    )
    proportion: float = option(
        1.3, gt=0.0, help="with fallback norm: the largest length of u, relative to the length of g"
    )

    needs = frozenset({"inverse"})

    @property
    def known_faults(self) -> dict[str, str]:
        reason = "the inverse is an estimate, made of the steps of the forward solve"
        return dict.fromkeys(("closed-form", "differences", "solver-independent", "single-precision"), reason)

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        inverse, value, report = solution.extras["inverse"], solution.state.detach(), AdjointReport()
        if not isinstance(inverse, InverseEstimate):
            raise TypeError(f"extras['inverse'] must be an InverseEstimate, got {type(inverse).__name__}")
        solution.extras["adjoint"] = report
        z, fz = recorded(f.value, value)

        def shared(g: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
            unit, size = scaled_rows(g)  # as in the adjoint equation, so that tiny cotangents do not vanish
            u = self._estimated(unit, inverse, lambda v: products(fz, z, v), report)
            return (u.double() * size.unsqueeze(1)).to(g.dtype)

        return with_gradient_of(value, fz, shared)

    def _estimated(
        self, g: Float[Tensor, "B D"], inverse: InverseEstimate, transposed: Map, report: AdjointReport
    ) -> Float[Tensor, "B D"]:
        u = -inverse.transpose_apply(g)
        size = row_norms(u)
        poor = ~size.isfinite()
        if self.fallback == "norm":
            poor = poor | (size > self.proportion * row_norms(g))
        made = self.refine
        for _ in range(self.refine):
            u = transposed(u) + g
        relative = torch.full_like(size, torch.nan)
        if self.fallback == "residual":
            made += 2
            left, plain = row_norms(transposed(u) + g - u), row_norms(transposed(g))
            poor = poor | ~(left <= plain)  # also where left is NaN
            length = row_norms(torch.where(poor.unsqueeze(1), g, u))
            relative = torch.where(poor, plain, left) / torch.where(length > 0, length, 1.0)
        self._tell(report, poor, relative, made)
        return torch.where(poor.unsqueeze(1), g, u)

    def _tell(self, report: AdjointReport, poor: Bool[Tensor, " B"], relative: Float[Tensor, " B"], made: int) -> None:
        report.backwards += 1
        report.rounds = made
        report.products = np.full(len(poor), made, dtype=np.int64)
        report.relative_error = relative.cpu().numpy()
        report.replaced = poor.cpu().numpy()
        report.message = f"{int(report.replaced.sum())} of {len(poor)} rows were given the one-step gradient"
