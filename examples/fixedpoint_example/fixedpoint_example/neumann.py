r"""Gradient by a truncated Neumann series.

With ``J = df/dz`` at the fixed point and the cotangent ``g``, the implicit gradient wants ``u = (I - J^T)^{-1} g``.
Here

    u = sum_{i < k} (J^T)^i g

(Lorraine, Vicol & Duvenaud 2020, "Optimizing millions of hyperparameters by implicit differentiation", section 3.)
What is left out is at most ``||(J^T)^k||`` of it, relatively. One term is the one-step gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint import GradientEstimator, Solution
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import option
from fixedpoint.gradients.estimator import with_gradient_of

__all__ = ["Neumann"]


@dataclass(frozen=True)
class Neumann(GradientEstimator):
    """A few terms of the Neumann series: one vector-Jacobian product for each after the first."""

    terms: int = option(5, ge=1, help="k: number of terms")

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        z = solution.state.detach().requires_grad_()
        with torch.enable_grad():
            fz = f.value(z)
            path = fz.clone()  # the series is summed on the way into it, and then goes on through f

        def summed(cotangent: Tensor) -> Tensor:
            total = term = cotangent
            for _ in range(self.terms - 1):
                (term,) = torch.autograd.grad(fz, z, term, retain_graph=True)
                total = total + term
            return total

        path.register_hook(summed)
        return with_gradient_of(solution.state.detach(), path)
