r"""Broyden's method, limited memory.

On ``g(z) = f(z) - z`` with an estimate ``H`` of the inverse Jacobian of ``g``, from ``H_0 = -I`` (a Picard step):

    z_{k+1} = z_k - H_k g_k
    dz      = z_{k+1} - z_k,   dg = g_{k+1} - g_k
    v       = H_k^T dz  ("good")  or  dg  ("bad")
    H_{k+1} = H_k + (dz - H_k dg) v^T / (v^T dg)

(Broyden 1965, "A class of methods for solving nonlinear simultaneous equations", eq. 4.12, and the second method
there.) The good update changes the estimate of the Jacobian as little as it can, the bad one that of its inverse. ``H``
is kept as ``-I + sum_i c_i d_i^T`` with at most ``m`` pairs.

Where we differ: the oldest pair is given up *before* the update, so that the newest secant ``H dg = dz`` always
holds; an update whose denominator is rounding is left out; a row whose residual has grown by more than
``restart_growth`` over its best forgets its pairs, unless it was a plain step that made it grow: it learns that secant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.history import History
from fixedpoint.core.inverse_jacobian import InverseEstimate, LowRankInverse
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.reduce import add_combination, row_dots, row_norms, vecdot
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.safeguard import Growth

__all__ = ["Broyden", "BroydenState"]


@dataclass(frozen=True)
class BroydenState:
    """The pairs ``(c, d)``, the last point, its residual and ``d_i . g`` there for every slot; the point proposed."""

    history: History
    point: Float[Tensor, "B D"] | None
    residual: Float[Tensor, "B D"] | None
    products: Float[Tensor, "B m"]
    proposal: Float[Tensor, "B D"] | None
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
        1e3, gt=1.0, help="growth of the residual over its best that makes a row forget its updates"
    )

    provides = StepSolver.provides | {"inverse"}

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> BroydenState:
        return BroydenState(
            history=History.empty(at.z, self.memory, groups=2),
            point=None,
            residual=None,
            products=torch.zeros(at.z.shape[0], self.memory, dtype=torch.float64, device=at.z.device),
            proposal=None,
            linked=torch.zeros(at.z.shape[0], dtype=torch.bool, device=at.z.device),
            growth=Growth.begin(at.residual_norm),
        )

    def reset(self, state: BroydenState, rows: Bool[Tensor, " B"]) -> BroydenState:
        return replace(state, history=state.history.forget(rows), linked=state.linked & ~rows)

    def step(
        self, f: Evaluator, at: Evaluated, state: BroydenState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, BroydenState]:
        grown, growth = state.growth.watch(at.residual_norm, self.restart_growth, state.history.valid.any(dim=1))
        state = replace(self.reset(state, grown), growth=growth)
        memory = f.empty()  # that of the point before, which is read for the last time while its change is written
        if state.point is None or state.residual is None:
            proposal = torch.add(at.z, at.residual, out=memory)
        else:
            dz = torch.sub(at.z, state.point, out=memory)
            dg = torch.sub(at.residual, state.residual, out=f.spare())
            ended = None if "inverse" not in f.wanted else to_device(~f.running, at.z.device)
            aside = () if ended is None else state.history.set_aside()
            step, state = self._updated(at, dz, dg, state)
            if ended is not None:  # a row that has ended keeps all it has learnt
                state = replace(state, history=state.history.put_back(ended, aside))
            proposal = torch.add(at.z, step, out=memory)
        linked = torch.ones_like(state.linked)
        state = replace(state, point=at.z, residual=at.residual, proposal=proposal, linked=linked)
        return proposal, state

    def inverse(self, state: BroydenState) -> InverseEstimate:
        left, right = state.history.columns
        valid = state.history.valid
        return LowRankInverse(left, right, lambda products: torch.where(valid, products, 0.0))

    def _updated(
        self, at: Evaluated, dz: Float[Tensor, "B D"], dg: Float[Tensor, "B D"], state: BroydenState
    ) -> tuple[Float[Tensor, "B D"], BroydenState]:
        """The step ``-H g``, and the state with the newest secant in place of the oldest pair; ``dz`` is written over.

        Every pair is read twice. ``d_i . dg`` are differences of ``d_i . g``. At the point that was proposed,
        ``dz`` is ``-H g`` of the point before, and ``dz - H dg`` the new step, but for the oldest pair; at any other
        (a damped one, say), it is a sum of its own.
        """
        history = state.history
        left, right = history.columns
        valid = history.surviving
        products = row_dots(right, at.residual)
        v = dg
        if self.update == "good":
            along = _masked(row_dots(left, dz), valid)
            v = torch.neg(dz, out=history.room(1))
            v = add_combination(v, right, along, out=_own(v))
        secant = None
        if at.z is not state.proposal:
            change = _masked(products - state.products[:, history.start :], valid)
            secant = add_combination(dz + dg, left, -change)
        step = add_combination(at.residual, left, -_masked(products, valid), out=_own(dz))
        missed = _without_oldest(step, state)  # dz - H dg
        if secant is not None:
            assert state.proposal is not None  # there is a point before
            missed = torch.where((at.z == state.proposal).all(dim=1, keepdim=True), missed, secant)
        length = row_norms(v.detach())
        denominator = vecdot(v, dg)
        sound = state.linked & (denominator.abs() > torch.finfo(dg.dtype).eps * length * row_norms(dg.detach()))
        # The pair is kept as (dz - H dg) |v| / (v^T dg) and v / |v|, both of moderate size in any dtype.
        length = torch.where(sound, length, 1.0)
        scale = length / torch.where(sound, denominator, 1.0)
        pushed = history.push_scaled((missed, scale), (v, 1.0 / length), valid=sound)
        left, right = (group[:, pushed.newest : pushed.newest + 1] for group in pushed.columns)
        newest = torch.where(sound.unsqueeze(1), row_dots(right, at.residual), 0.0)
        step = add_combination(step, left, -newest.unsqueeze(1), out=_own(step))
        kept = state.products.clone()
        kept[:, history.start :] = products
        kept[:, pushed.start + pushed.newest] = newest.squeeze(1)
        return step, replace(state, history=pushed, products=kept)


def _without_oldest(step: Float[Tensor, "B D"], state: BroydenState) -> Float[Tensor, "B D"]:
    """``step - c (d . g)`` with the pair that is given up, in the memory of its ``c``; ``step`` itself if none is."""
    history = state.history
    if history.oldest is None:
        return step
    oldest = slice(history.oldest, history.oldest + 1)
    along = _masked(state.products[:, oldest], history.valid[:, oldest])
    return add_combination(step, history.columns[0][:, oldest], -along, out=history.room(0))


def _own(tensor: Tensor) -> Tensor | None:
    """The tensor itself to write into, or None while gradients flow."""
    return None if torch.is_grad_enabled() else tensor


def _masked(weights: Float[Tensor, "B m"], valid: Bool[Tensor, "B m"]) -> Float[Tensor, "B 1 m"]:
    return torch.where(valid, weights, torch.zeros_like(weights)).unsqueeze(1)
