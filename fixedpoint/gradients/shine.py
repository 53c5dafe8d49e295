r"""SHINE: the inverse that the forward solver has learnt, shared with the backward pass.

A quasi-Newton method keeps an estimate ``H`` of the inverse Jacobian of ``f(z) - z``. As ``J - I`` is what it inverts,

    u = (I - J^T)^{-1} g  ~  -H^T g

at the price of a few inner products. (Ramzi, Mannel, Bai, Starck, Ciuciu & Moreau 2022, "SHINE: SHaring the INverse
Estimate from the forward pass for bi-level optimization and implicit models"; theirs are the refinement from there,
here by steps ``u <- J^T u + g``, and the fallback to the Jacobian-free ``u = g`` where ``u`` is out of proportion.)

``H`` is Broyden's, or that of Anderson acceleration, which is a multisecant method: ``H = -I + dF (dR^T dR)^{-1} dR^T``
(Fang & Saad 2009, "Two classes of multisecant methods for nonlinear acceleration"). It is exact on the
steps the solver has taken and the identity elsewhere, so the gradient is as good as these steps are many, and a solve
that ends at once has learnt nothing: then this is the one-step gradient.

Where we differ: by default a row falls back by what the adjoint equation says, not by the length of ``u``, which is
long wherever the map contracts slowly: where ``||J^T u + g - u||`` is larger than that of the one-step gradient,
``||J^T g||``. That costs two vector-Jacobian products. A row that has converged keeps its pairs while others go on.
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
    """The gradient by the forward solver's own inverse estimate; requires ``broyden`` or ``anderson``.

    ``solution.extras["adjoint"]`` says after a backward pass which rows fell back (``replaced``), how many products
    were made and, with ``fallback="residual"``, how well the adjoint equation is solved; no row has a status, since
    nothing was iterated to a tolerance. Second derivatives and forward mode are refused.
    """

    refine: int = option(0, ge=0, help="steps of the adjoint iteration from the estimate, one product each")
    fallback: Literal["residual", "norm", "never"] = option(
        "residual",
        help="when a row gets the one-step gradient: when its adjoint residual is worse (residual), when u is out of "
        "proportion (norm), or never",
    )
    proportion: float = option(1.3, gt=0.0, help="with fallback norm: the largest length of u, in lengths of g")

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
            unit, size = scaled_rows(g)
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
            poor = poor | ~(left <= plain)
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
