"""The problems of the gradient checks as chains, for estimators that work on chains only.

Plain iteration of a contraction converges to its fixed point. The last state of the chain ``z_{i+1} = f(z_i)`` of a
hundred steps is the fixed point to rounding, and its gradient is the gradient of the fixed point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.api import solve
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.joint.solver import ChainSolver
from fixedpoint.chains.methods.serial import Serial
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.layout import Layout
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.testing.gradients.bench import GradientBench

__all__ = ["ChainGradientBench", "PlainIteration"]

_STEPS = 100


class PlainIteration(Chain):
    """The chain ``z_{i+1} = f(z_i)`` for a function that is called with all rows at once.

    Parameters
    ----------
    f
        Function of states of shape ``(B, D)``; rows must not mix.
    rows
        ``B``, the number of rows.
    length
        ``N``, the number of steps.
    """

    def __init__(self, f: Callable[[Tensor], Tensor], rows: int, length: int = _STEPS) -> None:
        self.f, self.rows, self.length = f, rows, length

    def step(self, x: Float[Tensor, "P D"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]) -> Float[Tensor, "P D"]:
        """Evaluate ``f`` at every pair, with the k-th pairs of all rows in the k-th call."""
        alike = row.unsqueeze(1) == row
        place = alike.tril(-1).sum(1)
        spread = x.new_zeros(int(place.max()) + 1, self.rows, x.shape[1]).index_put((place, row), x)
        return torch.stack([self.f(part) for part in spread])[place, row]


class ChainGradientBench(GradientBench):
    """The problems of ``GradientBench``, each solved as the last state of a chain.

    Parameters
    ----------
    estimator
        The gradient estimator that is checked.
    solver
        Finds the states; default: one step after another.
    """

    has_equation = False

    def __init__(self, estimator: GradientEstimator, solver: Solver | None = None) -> None:
        super().__init__(estimator, solver or Serial())

    @property
    def others(self) -> tuple[Solver, ...]:
        return (ChainSolver(),)

    def solve(
        self,
        f: Callable[[Any], Any],
        start: Any,
        solver: Solver | None = None,
        rtol: float | None = None,
        *,
        gradient: bool = True,
    ) -> Solution:
        layout = Layout.of(start, "independent")
        packed = layout.pack(start, "start")
        chain = PlainIteration(lambda z: layout.pack(f(layout.unpack(z))), layout.rows)
        solution = solve(
            ChainProblem(chain, packed),
            solver=solver or self.solver,
            gradient=self.estimator if gradient else None,
            rtol=self.tight(start) if rtol is None else rtol,
        )
        last = solution.state[:, -layout.size :]
        return replace(solution, state=last, fstate=solution.fstate[:, -layout.size :], layout=layout)
