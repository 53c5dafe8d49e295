r"""Gradient by a truncated Neumann series.

With ``J = df/dz`` at the fixed point and the cotangent ``g``, in place of ``(I - J^T)^{-1} g``

    u = sum_{i < k} (J^T)^i g

(Lorraine, Vicol & Duvenaud 2020, "Optimizing millions of hyperparameters by implicit differentiation".)
What is left out is ``(J^T)^k`` times the implicit ``u``: at most ``||J^k||`` of it, which for maps that are not normal
may be large while the spectral radius to the ``k`` is small. One term is the one-step gradient; ``k`` terms are what
backpropagation through ``k`` plain rounds from the solution gives.

All products are made of one recorded evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.solution import Solution
from fixedpoint.gradients.estimator import GradientEstimator, with_gradient_of
from fixedpoint.gradients.recorded import products, recorded

__all__ = ["Neumann"]


@dataclass(frozen=True)
class Neumann(GradientEstimator):
    """A few terms of the Neumann series: one evaluation, and a vector-Jacobian product for each term after the first.

    Of constant memory; biased by what is left out. Second derivatives and forward mode are refused.
    """

    terms: int = option(5, ge=1, help="k: number of terms")

    @property
    def known_faults(self) -> dict[str, str]:
        return dict.fromkeys(("closed-form", "differences"), f"the series is cut off after {self.terms} terms")

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        value = solution.state.detach()
        z, fz = recorded(f.value, value)

        def summed(g: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
            total = term = g
            for _ in range(self.terms - 1):
                term = products(fz, z, term)
                total = total + term
            return total

        return with_gradient_of(value, fz, summed)
