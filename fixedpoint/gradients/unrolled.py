"""Unrolled gradient: backpropagation through the iterations themselves.

The derivative of what was computed, to any order; memory grows with the rounds. It tends to the derivative of the
fixed point as the iteration converges (Gilbert 1992, "Automatic differentiation and iterative processes").
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.solution import Solution
from fixedpoint.gradients.estimator import GradientEstimator

__all__ = ["Unrolled"]


@dataclass(frozen=True)
class Unrolled(GradientEstimator):
    """Backpropagates through every iteration, accelerator included."""

    runs_forward = True

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        return solution.state
