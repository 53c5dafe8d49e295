"""Unrolled gradient: backpropagation through the iterations themselves.

The derivative of what was computed, to any order; memory grows with the rounds. It tends to the derivative of the
fixed point as the iteration goes on (Gilbert 1992, "Automatic differentiation and iterative processes"). A row that is
solved may have been so too soon for that, from a warm start at once; its derivative is completed
(``fixedpoint.gradients.completed``).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.solution import Solution
from fixedpoint.gradients.completed import completed
from fixedpoint.gradients.estimator import GradientEstimator

__all__ = ["Unrolled"]


@dataclass(frozen=True)
class Unrolled(GradientEstimator):
    """Backpropagates through every iteration, accelerator included; a row that is solved gets the derivative of the
    fixed point, as exactly as it is solved.

    A row that is not solved has the derivative of what was computed, by its start, too; with ``complete=False`` every
    row has. ``solution.extras["adjoint"]`` says how the derivative of solved rows was completed.
    """

    complete: bool = option(True, help="go on with the derivative of solved rows until it is solved, too")

    runs_forward = True

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        return completed(f, solution, lambda: solution.state) if self.complete else solution.state
