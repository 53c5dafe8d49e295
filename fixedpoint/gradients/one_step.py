r"""One-step gradient, also called Jacobian-free backpropagation.

With the fixed point ``z*`` held constant, one more application of ``f`` carries the cotangent ``g``:

    dL/dtheta  ~  g^T df(z*, theta)/dtheta

that is, ``u = g`` replaces the implicit ``u = (I - J^T)^{-1} g``. (Fung et al. 2022, "JFB: Jacobian-free
backpropagation for implicit networks", eq. 13; Geng et al. 2021.) Its relative error is about ``||J||``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.solution import Solution
from fixedpoint.gradients.estimator import GradientEstimator, with_gradient_of

__all__ = ["OneStep"]


@dataclass(frozen=True)
class OneStep(GradientEstimator):
    """Differentiates one application of f at the solution: cheap, of constant memory, biased by about the norm of J.

    It costs one more evaluation. Second derivatives and forward mode raise ``RuntimeError``.
    """

    @property
    def known_faults(self) -> dict[str, str]:
        return dict.fromkeys(("closed-form", "differences"), "it leaves out the Jacobian of f in z")

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        with torch.enable_grad():
            path = f.value(solution.state.detach())
        return with_gradient_of(solution.state.detach(), path)
