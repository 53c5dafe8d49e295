"""Restarts: makes another step solver discard its history after a fixed number of steps.

A history that extends over a large region of a nonlinear map misleads. Restarting at the present point costs a few
rounds, and is the oldest safeguard against this. (Fang & Saad 2009, section 4.1.2; for GMRES, Saad & Schultz 1986.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
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
    age: NDArray[np.int64]


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
        return RestartedState(self.solver.init(f, at), np.zeros(at.z.shape[0], dtype=np.int64))

    def reset(self, state: RestartedState, rows: Bool[Tensor, " B"]) -> RestartedState:
        return self.reset_on_host(state, rows.cpu().numpy(), rows.device)

    def reset_on_host(self, state: RestartedState, rows: NDArray[np.bool_], device: torch.device) -> RestartedState:
        return RestartedState(self.solver.reset_on_host(state.inner, rows, device), np.where(rows, 0, state.age))

    def asked(self, f: Evaluator, at: Evaluated, state: RestartedState) -> list[Tensor]:
        return self.solver.asked(f, at, state.inner)

    def told(self, state: RestartedState, numbers: list[NDArray[Any]]) -> RestartedState:
        return replace(state, inner=self.solver.told(state.inner, numbers))

    def extras(self, state: RestartedState) -> dict[str, Any]:
        return self.solver.extras(state.inner)

    def step(
        self, f: Evaluator, at: Evaluated, state: RestartedState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, RestartedState]:
        due = state.age >= self.every
        state = self.reset_on_host(state, due, at.z.device) if due.any() else state
        proposal, inner = stepped(self.solver, f, at, state.inner)
        return proposal, replace(state, inner=inner, age=state.age + 1)
