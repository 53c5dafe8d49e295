r"""Krylov methods for affine maps, ``f(z) = A z + b``: solves one linear system instead of iterating.

At ``z``, with ``r = f(z) - z`` and the Jacobian ``J`` (which is ``A``), one step is

    (I - J) s = r,   by GMRES (Saad & Schultz 1986) or BiCGSTAB (van der Vorst 1992),   z+ = z + s

The linear system is solved to the tolerance of the solve, so that one step is enough for an affine map. The new point
is then judged on ``f`` itself, and a further step corrects any error that is left. The adjoint equation of an implicit
gradient is affine, and this solver is its default.

On maps that are not affine this is Newton's method without safeguards, and each step is solved more exactly than is
useful; prefer ``newton-krylov`` there. Products with ``J`` are the problem's own where it has them, and otherwise are
made in forward mode or by differences (see ``Evaluator.product``). Each product is a round.
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
from fixedpoint.solvers.linear import SolutionTolerance

__all__ = ["Krylov"]

# Fraction of the tolerance that the linear solver is given: it knows its residual by a recurrence, which may differ
# from the error that is measured at the new point.
_MARGIN = 0.9
# One linear solve reduces a residual to no less than this many units of rounding; the next step does the rest.
_ROUNDINGS = 16.0


@dataclass(frozen=True)
class Krylov(Solver):
    """Finds the fixed point of an affine map by solving a linear system with GMRES or BiCGSTAB."""

    method: Literal["auto", "gmres", "bicgstab"] = option(
        "auto",
        help="gmres: fewest products, one vector kept for each; bicgstab: two products a step, seven vectors; auto: "
        "gmres, in adjoint equations after a few terms of a series where that is enough",
    )
    memory: int = option(50, ge=1, help="number of products after which GMRES restarts from the residual")

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
    """The step solver behind :class:`Krylov`. It knows the tolerance of the solve; its state is the first error."""

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
        # One round is reserved for the evaluation at the new point.
        budget = f.remaining - 1
        if budget < 1 or (self.method.method == "bicgstab" and budget < 2):
            return at.fz.clone(), state  # too few rounds for a product: a plain step
        rule = self.termination
        scale = at.scale if rule.relative_to == "state" else state
        wanted = f.yardstick.tolerance(scale) if f.yardstick.fine else rule.atol + rule.rtol * scale
        # The error may be in another norm than the linear residual. The tolerance is therefore passed on as the factor
        # by which the error has to fall, that of the strictest block.
        allowed = _MARGIN * wanted / torch.where(at.error > 0, at.error, 1.0)
        floor = _ROUNDINGS * torch.finfo(at.z.dtype).eps
        rtol = allowed.amin(dim=1).nan_to_num(nan=_MARGIN).clamp(min=floor, max=_MARGIN)
        live = to_device(running, at.z.device).unsqueeze(1)

        def product(v: Tensor, rows: NDArray[np.bool_]) -> Tensor:
            f.narrow(rows)
            return f.product(at, v)

        rest, tolerance = torch.where(live, at.residual, 0.0), self._solution_tolerance(at)
        if self.method.method != "bicgstab":
            gmres = GMRES(self.method.memory)
            found = gmres.solve(product, rest, rtol, budget, running, tolerance, of_identity_minus=True)
        else:
            found = BiCGSTAB().solve(lambda v, rows: v - product(v, rows), rest, rtol, budget, running, tolerance)
        f.narrow(running)
        return at.z + found.x, state

    def _solution_tolerance(self, at: Evaluated) -> SolutionTolerance | None:
        """The tolerance relative to the solution, which may be much larger than the start; None where it has no form.

        It requires errors that are l2 or rms norms of whole rows, and a tolerance relative to the state.
        """
        rule = self.termination
        if rule.relative_to != "state" or rule.norm == "max" or at.error.shape[1] > 1:
            return None
        return SolutionTolerance(max(_MARGIN * rule.rtol, _ROUNDINGS * torch.finfo(at.z.dtype).eps), at.z)
