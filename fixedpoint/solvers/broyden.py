r"""Broyden's method, limited memory.

On ``g(z) = f(z) - z`` with an estimate ``H`` of the inverse Jacobian of ``g``, from ``H_0 = -I`` (a Picard step):

    z_{k+1} = z_k - H_k g_k
    v       = H_k^T dz  ("good")  or  dg  ("bad"),     dz = z_{k+1} - z_k,   dg = g_{k+1} - g_k
    H_{k+1} = H_k + (dz - H_k dg) v^T / (v^T dg)

(Broyden 1965, "A class of methods for solving nonlinear simultaneous equations", eq. 4.12 and 4.15.) The good update
changes the estimate of the Jacobian as little as it can, the bad one that of its inverse. ``H`` is kept as
``-I + sum_i c_i d_i^T`` with at most ``m`` pairs.

Where we differ: the oldest pair is given up *before* the update, so that the newest secant ``H dg = dz`` always
holds exactly; an update whose denominator is rounding is left out; a row whose residual has grown by more than
``restart_growth`` over its best forgets its pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.history import History
from fixedpoint.core.options import option
from fixedpoint.core.reduce import add_combination, row_dots, row_norms
from fixedpoint.core.solver import StepSolver
from fixedpoint.solvers.safeguard import Growth

__all__ = ["Broyden", "BroydenState"]


@dataclass(frozen=True)
class BroydenState:
    """The pairs ``(c, d)``, and the previous point."""

    history: History
    previous: Evaluated | None
    linked: Bool[Tensor, " B"]
    growth: Growth


@dataclass(frozen=True)
class Broyden(StepSolver[BroydenState]):
    """Broyden's method with limited memory: a quasi-Newton estimate of the inverse Jacobian."""

    memory: int = option(20, ge=1, help="m: number of rank-one updates kept")
    update: Literal["good", "bad"] = option(
        "good", help="what changes least: the estimate of the Jacobian (good) or of its inverse (bad)"
    )
    restart_growth: float = option(
        1e2, gt=1.0, help="growth of the residual over its best that makes a row forget its updates"
    )

    def init(self, f: Evaluator, at: Evaluated) -> BroydenState:
        return BroydenState(
            history=History.empty(at.z, self.memory, groups=2),
            previous=None,
            linked=torch.zeros(at.z.shape[0], dtype=torch.bool, device=at.z.device),
            growth=Growth.begin(row_norms(at.residual.detach())),
        )

    def reset(self, state: BroydenState, rows: Bool[Tensor, " B"]) -> BroydenState:
        return replace(state, history=state.history.forget(rows), linked=state.linked & ~rows)

    def step(
        self, f: Evaluator, at: Evaluated, state: BroydenState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, BroydenState]:
        grown, growth = state.growth.watch(row_norms(at.residual.detach()), self.restart_growth)
        state = _updated(at, replace(self.reset(state, grown), growth=growth), self.update == "good")
        left, right = state.history.columns
        weights = _masked(row_dots(right, at.residual), state.history.valid)
        plain = torch.add(at.z, at.residual, out=f.empty())
        proposal = add_combination(plain, left, -weights, out=None if torch.is_grad_enabled() else plain)
        return proposal, replace(state, previous=at, linked=torch.ones_like(state.linked))


def _updated(at: Evaluated, state: BroydenState, good: bool) -> BroydenState:
    """With the newest secant in place of the oldest pair."""
    if state.previous is None:
        return state
    history = state.history
    left, right = history.columns
    valid = history.surviving
    dz = at.z - state.previous.z
    dg = at.residual - state.previous.residual
    missed = add_combination(dz + dg, left, -_masked(row_dots(right, dg), valid))  # dz - H dg
    v = add_combination(-dz, right, _masked(row_dots(left, dz), valid)) if good else dg  # H^T dz, or dg
    length = row_norms(v.detach())
    denominator = row_dots(v.unsqueeze(1), dg).squeeze(1)
    sound = state.linked & (denominator.abs() > torch.finfo(at.z.dtype).eps * length * row_norms(dg.detach()))
    # The pair is kept as (dz - H dg) |v| / (v^T dg) and v / |v|, both of moderate size in any dtype.
    length = torch.where(sound, length, 1.0)
    scale = length / torch.where(sound, denominator, 1.0)
    return replace(state, history=history.push(_scaled(missed, scale), _scaled(v, 1.0 / length), valid=sound))


def _scaled(vector: Float[Tensor, "B D"], factor: Float[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """``factor * vector``, multiplied in single precision at least: the factor may exceed what half precision holds."""
    wide = torch.promote_types(vector.dtype, torch.float32)
    return (vector.to(wide) * factor.to(wide).unsqueeze(1)).to(vector.dtype)


def _masked(weights: Float[Tensor, "B m"], valid: Bool[Tensor, "B m"]) -> Float[Tensor, "B 1 m"]:
    return torch.where(valid, weights, torch.zeros_like(weights)).unsqueeze(1)
