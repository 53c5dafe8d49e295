r"""Picard iteration.

    z_{k+1} = (1 - beta) z_k + beta f(z_k)

with the relaxation ``beta`` (Banach 1922 for beta = 1; Krasnoselskii 1955, Mann 1953 for 0 < beta < 1).

Where we differ: convergence is tested on ``f(z) - z``, never on the step ``beta (f(z) - z)``, so that relaxation
cannot loosen the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver, SupportsWindow
from fixedpoint.core.options import option

__all__ = ["Picard"]


@dataclass(frozen=True)
class Picard(StepSolver[None], SupportsWindow):
    """Plain fixed-point iteration, optionally relaxed."""

    relaxation: float = option(1.0, gt=0.0, le=2.0, help="beta: how far to go towards f(z)")

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> None:
        return None

    def slide(self, f: Evaluator, state: None, move: Callable[[Tensor], Tensor]) -> None:
        """Do nothing: Picard keeps no state."""

    def renew(self, state: None, at: Evaluated, blocks: Bool[Tensor, "B blocks"]) -> None:
        """Do nothing: Picard keeps no state."""

    def step(self, f: Evaluator, at: Evaluated, state: None) -> tuple[Float[Tensor, "B D"] | Evaluated, None]:
        if self.relaxation == 1.0:
            return at.fz, None
        return torch.add(at.z, at.residual, alpha=self.relaxation, out=f.empty()), None
