"""Unrolled gradient: backpropagation through the iterations themselves.

This is the derivative of the computation as it was carried out, of any order. The memory grows with the number of
rounds. The derivative tends to that of the fixed point as the iteration proceeds (Gilbert 1992, "Automatic
differentiation and iterative processes"). The value of a row may be solved before its derivative has converged, from a
warm start even at once. The derivative of solved rows is therefore completed (``fixedpoint.gradients.completed``).
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
    """Backpropagates through every iteration, including the acceleration.

    A row that is solved gets the derivative of the fixed point, to the tolerance of the solve. A row that is not solved
    gets the derivative of the computation as it was carried out, which also depends on the start. With
    ``complete=False`` every row gets the latter. ``solution.extras["adjoint"]`` says how the derivative of solved rows
    was completed.
    """

    complete: bool = option(
        True, help="also solve for the derivative of solved rows, which may lag behind their values"
    )

    runs_forward = True

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        return completed(f, solution, lambda: solution.state) if self.complete else solution.state
