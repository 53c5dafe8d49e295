r"""Aitken's extrapolation for vectors: dynamic relaxation after Irons and Tuck.

With ``r_k = f(z_k) - z_k``, ``dz = z_k - z_{k-1}``, ``dr = r_k - r_{k-1}``:

    omega_k = - <dz, dr> / <dr, dr>,     omega_0 = 1
    z_{k+1} = z_k + omega_k r_k

(Irons & Tuck 1969, "A version of the Aitken accelerator for computer iteration"; Macleod 1986, "Acceleration of vector
sequences by multi-dimensional Delta-2 methods". Kuettler & Wall 2008, "Fixed-point fluid-structure interaction solvers
with dynamic relaxation", eq. 44, write it with ``dz = omega_{k-1} r_{k-1}``.) It stores one point in addition to the
iterate.

Where we differ: ``|omega_k|`` is kept within ``[shortest, longest]`` and its sign is kept, since a row with
``omega_k = 0`` would never move again. A row whose residual has grown more than tenfold in one step takes a plain step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import OptionError, option
from fixedpoint.core.reduce import row_norms, vecdot

__all__ = ["Aitken", "AitkenState"]

# Growth of the residual from one step to the next after which a row takes a plain step.
_GROWTH = 10.0


@dataclass(frozen=True)
class AitkenState:
    """The previous point, whether each row may be compared with it (``linked``), and the norm of its residual."""

    previous: Evaluated | None
    linked: Bool[Tensor, " B"]
    size: Float[Tensor, " B"]


@dataclass(frozen=True)
class Aitken(StepSolver[AitkenState]):
    """Dynamic relaxation: every row steps along its residual, by a length computed from the last two residuals."""

    shortest: float = option(0.1, gt=0.0, help="smallest length of a step, in residuals")
    longest: float = option(100.0, gt=0.0, help="largest length of a step, in residuals")

    def check(self) -> None:
        if self.shortest > self.longest:
            raise OptionError("Aitken", "shortest", f"must not exceed longest, {self.longest}, got {self.shortest}")

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> AitkenState:
        return AitkenState(None, torch.zeros_like(at.finite), at.residual_norm)

    def reset(self, state: AitkenState, rows: Bool[Tensor, " B"]) -> AitkenState:
        return AitkenState(state.previous, state.linked & ~rows, state.size)

    def step(
        self, f: Evaluator, at: Evaluated, state: AitkenState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, AitkenState]:
        size = at.residual_norm
        linked = state.linked & (size <= _GROWTH * state.size)
        length = torch.ones_like(size) if state.previous is None else self._length(at, state.previous, linked)
        proposal = torch.addcmul(at.z, at.residual, length.to(at.z.dtype).unsqueeze(1), out=f.empty())
        return proposal, AitkenState(at, torch.ones_like(state.linked), size)

    def _length(self, at: Evaluated, previous: Evaluated, linked: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
        change = at.residual - previous.residual
        size = row_norms(change.detach())
        usable = linked & (size > 0)
        unit = change / torch.where(usable, size, 1.0).to(change.dtype).unsqueeze(1)  # its square does not underflow
        along = vecdot(at.z - previous.z, unit)
        squared = torch.where(usable, vecdot(unit, unit) * size, 1.0)
        suggested = -along / squared
        usable = usable & (suggested != 0) & suggested.isfinite()
        bounded = suggested.sign() * suggested.abs().clamp(self.shortest, self.longest)
        return torch.where(usable, bounded, 1.0)
