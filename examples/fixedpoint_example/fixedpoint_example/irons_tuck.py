r"""Dynamic relaxation, Aitken's extrapolation for vectors.

With the residual ``r_k = f(z_k) - z_k``:

    omega_k = - omega_{k-1} <r_{k-1}, r_k - r_{k-1}> / ||r_k - r_{k-1}||^2,   omega_0 = 1
    z_{k+1} = z_k + omega_k r_k

(Irons & Tuck 1969, "A version of the Aitken accelerator for computer iteration"; Kuettler & Wall 2008,
"Fixed-point fluid-structure interaction solvers with dynamic relaxation", eq. 44.)

There are two differences. The absolute value of ``omega_k`` is limited to ``[shortest, longest]``, since a row with
``omega_k = 0`` would never move again. A row whose residual has grown more than tenfold takes a plain step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint import StepSolver
from fixedpoint.plugin import Evaluated, Evaluator, OptionError, option, row_norms, vecdot

__all__ = ["IronsTuck", "IronsTuckState"]


@dataclass(frozen=True)
class IronsTuckState:
    """The memory of the solver.

    Attributes
    ----------
    residual
        The last residual of every row, shape ``(B, D)``.
    length
        The length ``omega`` of the last step of every row, shape ``(B,)``, float64.
    linked
        Whether a row has taken a step since its start or its last restart, shape ``(B,)``.
    """

    residual: Float[Tensor, "B D"]
    length: Float[Tensor, " B"]
    linked: Bool[Tensor, " B"]


@dataclass(frozen=True)
class IronsTuck(StepSolver[IronsTuckState]):
    """Dynamic relaxation: each row moves along its residual, by a length computed from the last two residuals."""

    shortest: float = option(0.1, gt=0.0, help="smallest length of a step, in residuals")
    longest: float = option(10.0, gt=0.0, help="largest length of a step, in residuals")

    def check(self) -> None:
        if self.shortest > self.longest:
            raise OptionError("IronsTuck", "shortest", f"must not exceed longest, {self.longest}, got {self.shortest}")

    def init(self, f: Evaluator, at: Evaluated) -> IronsTuckState:
        one = torch.ones(len(at.z), dtype=torch.float64, device=at.z.device)
        return IronsTuckState(at.residual, one, torch.zeros_like(at.finite))

    def reset(self, state: IronsTuckState, rows: Bool[Tensor, " B"]) -> IronsTuckState:
        return IronsTuckState(state.residual, state.length, state.linked & ~rows)

    def step(self, f: Evaluator, at: Evaluated, state: IronsTuckState) -> tuple[Float[Tensor, "B D"], IronsTuckState]:
        change = at.residual - state.residual
        size = row_norms(change.detach())
        moved = size > 0
        size = torch.where(moved, size, 1.0)
        unit = change / size.to(change.dtype).unsqueeze(1)  # squares of tiny changes would underflow
        square = torch.where(moved, vecdot(unit, unit), 1.0)
        suggested = -state.length * vecdot(unit, state.residual) / (size * square)
        bounded = suggested.sign() * suggested.abs().clamp(self.shortest, self.longest)
        grown = row_norms(at.residual.detach()) > 10 * row_norms(state.residual.detach())
        usable = state.linked & moved & ~grown & (suggested != 0) & suggested.isfinite()
        length = torch.where(usable, bounded, 1.0)
        proposal = at.z + length.to(at.z.dtype).unsqueeze(1) * at.residual
        return proposal, IronsTuckState(at.residual, length, torch.ones_like(state.linked))
