r"""Phantom gradient: a few damped steps from the solution, differentiated.

    z_0 = z*, held constant,    z_{j+1} = (1 - tau) z_j + tau f(z_j),    j = 0 .. k-1

(Geng, Zhang, Bai, Wang & Lin 2021, "On training implicit models", the unrolled form.) Backwards it gives

    u = tau sum_{j < k} ((1 - tau) I + tau J^T)^j g

a truncated, damped Neumann series: with ``k = 1`` and ``tau = 1`` the one-step gradient, for large ``k`` the implicit
one. Damping makes it converge for maps where the plain series does not: an eigenvalue of ``J`` below -1, say.

Where we differ: the value handed on is ``z*`` itself, bit for bit; the steps are the path of the gradient alone.
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
    """Damped steps from the solution: one recorded evaluation for each, and as much memory.

    Biased by what is left out, and shorter by ``tau`` at few steps. Second derivatives and forward mode are refused.
    """

    steps: int = option(5, ge=1, help="k: number of steps; each costs one evaluation, and keeps it")
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
