r"""Gradient by a truncated Neumann series.

With ``J = df/dz`` at the fixed point and the cotangent ``g``, this replaces ``(I - J^T)^{-1} g`` by

    u = sum_{i < k} (J^T)^i g

(Lorraine, Vicol & Duvenaud 2020, "Optimizing millions of hyperparameters by implicit differentiation".)
The bias is ``(J^T)^k`` times the implicit ``u``. Relative to ``u`` it is at most ``||J^k||``. If ``J`` is not normal,
this may be large although the ``k``-th power of the spectral radius is small. One term gives the one-step gradient;
``k`` terms give the gradient of backpropagation through ``k`` plain rounds from the solution.

All products are computed from one recorded evaluation.
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

    The memory is constant. The gradient is biased, since the series is cut off. Second derivatives and forward mode
    raise ``RuntimeError``.
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
