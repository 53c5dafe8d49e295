r"""Damping: any step solver, going only part of the way.

    z_{k+1} = z_k + damping (p_k - z_k)

with the proposal ``p_k`` of the solver within. It sees the points that were really taken, so a quasi-Newton method
keeps true secants. (For Anderson acceleration compare its own relaxation, which damps the residual that is left
instead.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import OptionError, by_options, option
from fixedpoint.solvers.anderson import Anderson

__all__ = ["Damped"]


@dataclass(frozen=True)
class Damped(StepSolver[Any]):
    """A step solver whose steps are shortened: slower and steadier."""

    solver: StepSolver[Any] = option(factory=Anderson, help="the step solver within")
    damping: float = option(0.5, gt=0.0, le=1.0, help="part of its step that is taken")

    def check(self) -> None:
        if "chain" in self.solver.needs:
            raise OptionError("Damped", "solver", f"must not be a solver of chains, got {self.solver!r}")

    @by_options()
    def needs(self) -> frozenset[str]:
        """What the solver within needs."""
        return self.solver.needs

    @by_options("decisions")
    def provides(self) -> frozenset[str]:
        """The decisions, where the solver within provides its own."""
        return self.solver.provides & {"decisions"}

    @property
    def supports_row_selection(self) -> bool:
        return self.solver.supports_row_selection

    def init(self, f: Evaluator, at: Evaluated) -> Any:
        return self.solver.init(f, at)

    def reset(self, state: Any, rows: Bool[Tensor, " B"]) -> Any:
        return self.solver.reset(state, rows)

    def extras(self, state: Any) -> dict[str, Any]:
        return self.solver.extras(state)

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> tuple[Float[Tensor, "B D"] | Evaluated, Any]:
        proposal, state = self.solver.step(f, at, state)
        if isinstance(proposal, Evaluated):
            raise TypeError(f"{type(self.solver).__name__} evaluates within its step and cannot be damped")
        return torch.lerp(at.z, proposal, self.damping), state
