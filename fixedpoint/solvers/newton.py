r"""Newton's method with whole Jacobians, damped by the natural monotonicity test.

At ``z_k`` with ``r_k = f(z_k) - z_k`` and its Jacobian ``B_k``:

    s_k = -B_k^{-1} r_k,          z_{k+1} = z_k + lambda s_k
    s'  = -B_k^{-1} r(z_k + lambda s_k)            the simplified step
    accepted where ||s'|| < (1 - lambda / 4) ||s_k||

(Deuflhard 2004, "Newton methods for nonlinear problems", section 3.3.3, algorithm NLEQ-ERR, eqs. 3.45 to 3.48.) The
test does not change if the equations are multiplied by any matrix, so that neither their units nor their sign matter.
The damping follows from what the last steps showed of the curvature:

    lambda_{k+1} = min(1, lambda_k ||s_k|| ||s'|| / (||s' - s_{k+1}|| ||s_{k+1}||))
    lambda       = min(lambda / 2, lambda^2 ||s_k|| / (2 ||s' - (1 - lambda) s_k||))

before the first trial, and after a rejected one, where it is at least ``lambda / 10``.

Norms are those of the unknowns in units of ``1 / ||B e_j||``, and singular values of ``B`` in these units that are
below ``D eps`` times the largest count as zero. A row ends where ``lambda`` falls below ``least``.
Where we differ: a full step that leaves less than ``slow`` of the step updates the Jacobian by Broyden's formula; a
rejected step with such a Jacobian computes it anew, before ``lambda`` is reduced. A singular ``B_k`` has the shortest
step. With ``damping="none"`` every finite trial is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_norms
from fixedpoint.solvers.linearised import Factors, Linearised, Products, probe, refuse_recording

__all__ = ["Newton", "NewtonState"]

# Kept from the last accepted step where there is none.
_FULL = 1.0


@dataclass(frozen=True)
class NewtonState:
    """What Newton's method keeps of every row.

    ``damping`` is the ``lambda`` of the next trial, ``begun`` says whether it has been tried at this point. ``last`` is
    the step before, times its ``lambda``, and ``simplified`` the simplified step that followed. ``over`` marks rows
    that have no further step.
    """

    linear: Linearised
    damping: Float[Tensor, " B"]
    begun: Bool[Tensor, " B"]
    last: Float[Tensor, "B D"]
    simplified: Float[Tensor, "B D"]
    over: Bool[Tensor, " B"]


@dataclass(frozen=True)
class Newton(StepSolver[NewtonState]):
    """Newton's method with the Jacobian matrix of every row, for few unknowns; damped, and blind to units and signs."""

    damping: Literal["natural", "none"] = option(
        "natural", help="whether a step is shortened until the natural monotonicity test accepts it"
    )
    slow: float = option(
        0.1, ge=0.0, lt=1.0, help="ratio of successive steps above which the Jacobian is computed anew, not updated"
    )
    least: float = option(1e-4, gt=0.0, lt=1.0, help="damping factor below which a row ends")
    jacobian: Products = option(
        "auto", help="Jacobians in forward mode, by differences, or (auto) by differences where forward mode fails"
    )

    provides = frozenset()  # no "decisions": autograd cannot go through the Jacobians

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> NewtonState:
        one = torch.ones_like(row_norms(at.z))
        none = torch.zeros_like(at.z, dtype=torch.float64)
        return NewtonState(Linearised.begin(at), one, one > 1, none, none, one > 1)

    def reset(self, state: NewtonState, rows: Bool[Tensor, " B"]) -> NewtonState:
        linear = replace(state.linear, stale=state.linear.stale | rows)
        last = torch.where(rows.unsqueeze(1), 0.0, state.last)
        # The damping that led astray must not be tried again at the point the row is put back to.
        damping = torch.where(rows, 0.1 * state.damping, state.damping)
        return replace(state, linear=linear, last=last, damping=damping, begun=state.begun | rows)

    def exhausted(self, state: NewtonState) -> Bool[Tensor, " B"]:
        return state.over

    def step(
        self, f: Evaluator, at: Evaluated, state: NewtonState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, NewtonState]:
        refuse_recording("Newton")
        linear = state.linear.renewed(f, at, self.jacobian)
        if linear is None:
            return at.fz, state  # no round is left for a Jacobian: a plain step
        sizes = linear.sizes
        scale = torch.where(sizes > 0, sizes, 1.0)
        factors = Factors.of(linear.matrix, scale, torch.finfo(at.z.dtype).eps)
        residual = at.residual.double().nan_to_num()  # a start that is not finite ends here, whatever it is
        full = factors.newton(residual)
        length = row_norms(full * scale)
        damping = torch.where(state.begun, state.damping, self._predicted(state, full, length, scale))
        step, probing = probe(at, damping.unsqueeze(1) * full)
        new = f((at.z.double() + step).to(at.z.dtype))
        simplified = factors.newton(torch.where(new.finite.unsqueeze(1), new.residual.double(), 0.0))
        ratio = row_norms(simplified * scale) / torch.where(length > 0, length, 1.0)
        accepted = new.finite & (probing | (ratio < 1.0 - damping / 4))
        if self.damping == "none":
            accepted = new.finite & (length > 0)
        quick = accepted & (damping == 1.0) & (ratio <= self.slow) & ~probing
        change = torch.where(new.finite.unsqueeze(1), new.residual.double(), 0.0) - residual
        again = ~accepted & ~linear.fresh  # rejected with a Jacobian of an earlier point
        curved = row_norms((simplified - (1.0 - damping).unsqueeze(1) * full) * scale)
        shorter = 0.5 * damping * torch.clamp(damping * length / torch.where(curved > 0, curved, 1.0), max=1.0)
        shorter = torch.where(new.finite & (curved > 0), torch.maximum(shorter, 0.1 * damping), 0.25 * damping)
        rejected = ~accepted & linear.fresh
        linear = linear.updated(quick, step, change)
        linear = Linearised(linear.matrix, (accepted & ~quick) | again, linear.fresh & ~accepted)
        ended = (rejected & (shorter < self.least)) | (damping < self.least)
        moved = accepted.unsqueeze(1)
        # A row that ends where f is not finite is shown to the loop as such.
        return new.where(accepted | (ended & ~new.finite), at), NewtonState(
            linear=linear,
            damping=torch.where(rejected, shorter, damping),
            begun=rejected,
            last=torch.where(probing.unsqueeze(1), 0.0, torch.where(moved, step, state.last)),
            simplified=torch.where(moved, simplified, state.simplified),
            over=ended & new.finite,
        )

    def _predicted(
        self, state: NewtonState, full: Float[Tensor, "B D"], length: Float[Tensor, " B"], scale: Float[Tensor, "B D"]
    ) -> Float[Tensor, " B"]:
        """Return the damping of the first trial at a new point, from the curvature along the last step."""
        if self.damping == "none":
            return torch.ones_like(length)
        before = row_norms(state.last * scale)
        curved = row_norms((state.simplified - full) * scale) * length
        found = before * row_norms(state.simplified * scale) / torch.where(curved > 0, curved, 1.0)
        return torch.where((before > 0) & (curved > 0), found.clamp(max=_FULL), _FULL)
