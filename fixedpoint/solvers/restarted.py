"""Restarts: makes another step solver discard its history after a fixed number of steps.

A history that extends over a large region of a nonlinear map misleads. Restarting at the present point costs a few
rounds, and is the oldest safeguard against this. (Fang & Saad 2009, section 4.1.2; for GMRES, Saad & Schultz 1986.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver, stepped
from fixedpoint.core.options import OptionError, by_options, option
from fixedpoint.solvers.anderson import Anderson

__all__ = ["Restarted", "RestartedState"]


@dataclass(frozen=True)
class RestartedState:
    """The state of the inner solver, and the number of steps of every row since its last restart."""

    inner: Any
    age: Int[Tensor, " B"]


@dataclass(frozen=True)
class Restarted(StepSolver[RestartedState]):
    """Makes another step solver discard its history regularly."""

    solver: StepSolver[Any] = option(factory=Anderson, help="the step solver that is restarted")
    every: int = option(20, ge=1, help="number of steps after which the history of a row is discarded")

    def check(self) -> None:
        if "chain" in self.solver.needs:
            raise OptionError("Restarted", "solver", f"must not be a solver of chains, got {self.solver!r}")

    @by_options()
    def needs(self) -> frozenset[str]:
        """What the inner solver needs."""
        return self.solver.needs

    @by_options("decisions")
    def provides(self) -> frozenset[str]:
        """``"decisions"`` if the inner solver provides them."""
        return self.solver.provides & {"decisions"}

    @property
    def supports_row_selection(self) -> bool:
        return self.solver.supports_row_selection

    def init(self, f: Evaluator, at: Evaluated) -> RestartedState:
        age = torch.zeros(at.z.shape[0], dtype=torch.int64, device=at.z.device)
        return RestartedState(self.solver.init(f, at), age)

    def reset(self, state: RestartedState, rows: Bool[Tensor, " B"]) -> RestartedState:
        return RestartedState(self.solver.reset(state.inner, rows), torch.where(rows, 0, state.age))

    def extras(self, state: RestartedState) -> dict[str, Any]:
        return self.solver.extras(state.inner)

    def step(
        self, f: Evaluator, at: Evaluated, state: RestartedState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, RestartedState]:
        state = self.reset(state, state.age >= self.every)
        proposal, inner = stepped(self.solver, f, at, state.inner)
        return proposal, replace(state, inner=inner, age=state.age + 1)
