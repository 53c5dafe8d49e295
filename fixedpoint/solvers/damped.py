r"""Damping: takes only a part of each step of another step solver.

    z_{k+1} = z_k + damping (p_k - z_k)

where ``p_k`` is the proposal of the inner solver. The inner solver is given the damped points, so the secants of a
quasi-Newton method stay correct. (Anderson acceleration has its own ``relaxation``, which damps only the part of the
residual that its history does not explain.)
"""

from __future__ import annotations

from dataclasses import dataclass
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

__all__ = ["Damped"]


@dataclass(frozen=True)
class Damped(StepSolver[Any]):
    """Shortens the steps of another step solver: slower, but more robust."""

    solver: StepSolver[Any] = option(factory=Anderson, help="the step solver whose steps are damped")
    damping: float = option(0.5, gt=0.0, le=1.0, help="fraction of its step that is taken")

    def check(self) -> None:
        if "chain" in self.solver.needs:
            raise OptionError("Damped", "solver", f"must not be a solver of chains, got {self.solver!r}")

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

    def init(self, f: Evaluator, at: Evaluated) -> Any:
        return self.solver.init(f, at)

    def reset(self, state: Any, rows: Bool[Tensor, " B"]) -> Any:
        return self.solver.reset(state, rows)

    def reset_on_host(self, state: Any, rows: NDArray[np.bool_], device: torch.device) -> Any:
        return self.solver.reset_on_host(state, rows, device)

    def asked(self, f: Evaluator, at: Evaluated, state: Any) -> list[Tensor]:
        return self.solver.asked(f, at, state)

    def told(self, state: Any, numbers: list[NDArray[Any]]) -> Any:
        return self.solver.told(state, numbers)

    def extras(self, state: Any) -> dict[str, Any]:
        return self.solver.extras(state)

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> tuple[Float[Tensor, "B D"] | Evaluated, Any]:
        proposal, state = stepped(self.solver, f, at, state)
        if isinstance(proposal, Evaluated):
            raise TypeError(f"{type(self.solver).__name__} evaluates within its step and cannot be damped")
        return torch.lerp(at.z, proposal, self.damping), state
