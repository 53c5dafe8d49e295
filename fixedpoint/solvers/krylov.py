r"""Krylov methods for affine maps, ``f(z) = A z + b``: one linear system instead of an iteration.

At ``z`` with ``r = f(z) - z`` and the Jacobian ``J`` (which is ``A``), one step is

    (I - J) s = r,   by GMRES (Saad & Schultz 1986) or BiCGSTAB (van der Vorst 1992),   z+ = z + s

the system solved as exactly as the tolerance of the solve requires, so that one step is enough where the map is affine.
What is left is judged on ``f`` itself, and a further step corrects it. The adjoint equation of an implicit gradient is
affine, and this is what solves it by default.

On maps that are not affine it is Newton's method without the safeguards, each step solved more exactly than it
deserves; ``newton-krylov`` is made for those. Products with ``J`` are the problem's own, or made in forward mode or by
differences (see ``Evaluator.product``), each a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.problem import AbilityError
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.bicgstab import BiCGSTAB
from fixedpoint.solvers.gmres import GMRES
from fixedpoint.solvers.linear import OfSolution

__all__ = ["Krylov"]

# Of the tolerance: the linear residual is known by a recurrence, the error is judged anew.
_MARGIN = 0.9
# A row's residual is not reduced by more than this at once, in units of rounding: the rest is for the next step.
_ROUNDINGS = 16.0


@dataclass(frozen=True)
class Krylov(Solver):
    """Solves an affine map as a linear system, by GMRES or BiCGSTAB."""

    method: Literal["gmres", "bicgstab"] = option(
        "gmres", help="gmres: fewest products, one vector kept for each; bicgstab: two products a step, seven vectors"
    )
    memory: int = option(50, ge=1, help="products before GMRES starts anew from the residual")

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        if torch.is_grad_enabled():
            raise AbilityError("Krylov cannot be unrolled: autograd would not see its linear systems")
        return replace(_LinearSteps(self, termination).solve(f, z0, termination, on_round), solver=self)


@dataclass(frozen=True)
class _LinearSteps(StepSolver[Float[Tensor, "B blocks"]]):
    """The steps, which know the tolerance; their state is the first error."""

    method: Krylov
    termination: Termination

    affine = True

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> Float[Tensor, "B blocks"]:
        return at.error

    def step(
        self, f: Evaluator, at: Evaluated, state: Float[Tensor, "B blocks"]
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, Float[Tensor, "B blocks"]]:
        running = f.running
        # One round is kept for the evaluation at the new point.
        budget = f.remaining - 1
        if budget < 1 or (self.method.method == "bicgstab" and budget < 2):
            return at.fz.clone(), state
        rule = self.termination
        scale = at.scale if rule.relative_to == "state" else state
        wanted = f.yardstick.tolerance(scale) if f.yardstick.fine else rule.atol + rule.rtol * scale
        allowed = _MARGIN * wanted / torch.where(at.error > 0, at.error, 1.0)
        floor = _ROUNDINGS * torch.finfo(at.z.dtype).eps
        rtol = allowed.amin(dim=1).nan_to_num(nan=_MARGIN).clamp(min=floor, max=_MARGIN)
        live = to_device(running, at.z.device).unsqueeze(1)

        def product(v: Tensor, rows: NDArray[np.bool_]) -> Tensor:
            f.narrow(rows)
            return v - f.product(at, v)

        linear = GMRES(self.method.memory) if self.method.method == "gmres" else BiCGSTAB()
        found = linear.solve(product, torch.where(live, at.residual, 0.0), rtol, budget, running, self._of_solution(at))
        f.narrow(running)
        return at.z + found.x, state

    def _of_solution(self, at: Evaluated) -> OfSolution | None:
        """A tolerance relative to the state is one of the state that is found, which may be larger than the start."""
        rule = self.termination
        if rule.relative_to != "state" or rule.norm == "max" or at.error.shape[1] > 1:
            return None
        return OfSolution(max(_MARGIN * rule.rtol, _ROUNDINGS * torch.finfo(at.z.dtype).eps), at.z)
