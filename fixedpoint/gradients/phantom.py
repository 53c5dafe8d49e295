r"""Phantom gradient: differentiates a few damped steps from the solution.

    z_0 = z*, as a constant,    z_{j+1} = (1 - tau) z_j + tau f(z_j),    j = 0 .. k-1

(Geng, Zhang, Bai, Wang & Lin 2021, "On training implicit models", the unrolled form.) The backward pass gives

    u = tau sum_{j < k} ((1 - tau) I + tau J^T)^j g

which is a truncated, damped Neumann series. With ``k = 1`` and ``tau = 1`` it is the one-step gradient, and for large
``k`` it tends to the implicit one. Damping makes the series converge for maps where the plain series does not, such as
those with an eigenvalue of ``J`` below -1.

Where we differ: the returned value is ``z*`` itself, bit for bit; the steps serve only the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.solution import Solution
from fixedpoint.gradients.estimator import GradientEstimator, with_gradient_of

__all__ = ["Phantom"]


@dataclass(frozen=True)
class Phantom(GradientEstimator):
    """Differentiates damped steps from the solution; each takes one recorded evaluation, and its memory.

    The gradient is biased, since the series is cut off, and with few steps it is too short by about the factor ``tau``.
    Second derivatives and forward mode raise ``RuntimeError``.
    """

    steps: int = option(5, ge=1, help="k: number of steps; each costs one evaluation, which is kept in memory")
    tau: float = option(0.5, gt=0.0, le=1.0, help="how far each step goes")

    @property
    def known_faults(self) -> dict[str, str]:
        return dict.fromkeys(("closed-form", "differences"), f"only {self.steps} steps are differentiated")

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        path = value = solution.state.detach()
        with torch.enable_grad():
            for _ in range(self.steps):
                path = torch.lerp(path, f.value(path), self.tau)
        return with_gradient_of(value, path)
