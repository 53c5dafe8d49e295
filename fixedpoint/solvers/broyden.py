r"""Broyden's method with limited memory.

For ``g(z) = f(z) - z``, with an estimate ``H`` of the inverse Jacobian of ``g`` that begins as ``H_0 = -I`` (a Picard
step):

    z_{k+1} = z_k - H_k g_k
    dz      = z_{k+1} - z_k,   dg = g_{k+1} - g_k
    v       = H_k^T dz  ("good")  or  dg  ("bad")
    H_{k+1} = H_k + (dz - H_k dg) v^T / (v^T dg)

(Broyden 1965, "A class of methods for solving nonlinear simultaneous equations", eq. 4.12, and the second method
there.) The good update makes the smallest change to the estimate of the Jacobian, the bad update the smallest change to
the estimate of its inverse. ``H`` is stored as ``-I + sum_i c_i d_i^T`` with at most ``m`` pairs.

Where we differ: the oldest pair is dropped before the update, so that the newest secant equation ``H dg = dz`` always
holds. An update whose denominator is only rounding is skipped. A row whose residual has grown to more than
``restart_growth`` times its smallest drops all its pairs, unless a plain step made it grow: then it keeps that secant.
With fewer pairs than unknowns, the residual can stop falling even where ``f`` is an affine contraction, because every
new pair takes the place of one that is needed. A row whose residual has had no new minimum for ``2 m`` rounds, and for
20, therefore drops all its pairs, too.
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
from fixedpoint.solvers.safeguard import Growth, Idleness

__all__ = ["Broyden", "BroydenState"]


# Rounds without a smaller residual after which a row of few pairs may drop them.
_LEAST_PATIENCE = 20


@dataclass(frozen=True)
class BroydenState:
    """What Broyden's method keeps between steps.

    ``history`` holds the pairs ``(c, d)``; ``point`` and ``residual`` are the last point and its residual, and
    ``products`` the inner products ``d_i . residual`` for every slot of the history. ``proposal`` is the last point
    proposed, ``linked`` marks the rows that may take a secant, ``growth`` holds the smallest residual norms, and
    ``idle`` the rounds without a smaller one.
    """

    history: History
    point: Float[Tensor, "B D"] | None
    residual: Float[Tensor, "B D"] | None
    products: Float[Tensor, "B m"]
    proposal: Float[Tensor, "B D"] | None
    linked: Bool[Tensor, " B"]
    growth: Growth
    idle: Idleness


@dataclass(frozen=True)
class Broyden(StepSolver[BroydenState]):
    """Broyden's method with limited memory: a quasi-Newton method that estimates the inverse Jacobian."""

    memory: int = option(20, ge=1, help="m: number of rank-one updates kept")
    update: Literal["good", "bad"] = option(
        "good", help="the estimate that each update changes least: of the Jacobian (good) or of its inverse (bad)"
    )
    restart_growth: float = option(
        1e3, gt=1.0, help="ratio of the residual to the smallest one above which a row forgets its updates"
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
            idle=Idleness.begin(at.residual_norm),
        )

    def reset(self, state: BroydenState, rows: Bool[Tensor, " B"]) -> BroydenState:
        return replace(state, history=state.history.forget(rows), linked=state.linked & ~rows)

    def step(
        self, f: Evaluator, at: Evaluated, state: BroydenState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, BroydenState]:
        grown, growth = state.growth.watch(at.residual_norm, self.restart_growth, state.history.valid.any(dim=1))
        if self.memory < at.z.shape[1]:
            stuck, idle = state.idle.watch(at.residual_norm, state.growth.best, max(2 * self.memory, _LEAST_PATIENCE))
            grown, state = grown | stuck, replace(state, idle=idle)
        state = replace(self.reset(state, grown), growth=growth)
        # This is the memory of the previous point. It is read for the last time while dz is written over it.
        memory = f.empty()
        if state.point is None or state.residual is None:
            proposal = torch.add(at.z, at.residual, out=memory)
        else:
            dz = torch.sub(at.z, state.point, out=memory)
            dg = torch.sub(at.residual, state.residual, out=f.spare())
            ended = None if "inverse" not in f.wanted else to_device(~f.running, at.z.device)
            aside = () if ended is None else state.history.set_aside()
            step, state = self._updated(at, dz, dg, state)
            if ended is not None:  # the estimate of a row that has ended must belong to its answer
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
        """Return the step ``-H g`` and the state with the oldest pair replaced by the newest; overwrites ``dz``.

        Each pair is read only twice. The inner products ``d_i . dg`` are differences of the stored ``d_i . g``. Where
        the present point is the one that was proposed, ``dz`` is ``-H g`` of the previous point, so ``dz - H dg`` is
        the step with the old ``H``, without the oldest pair. At any other point, such as a damped one, ``dz - H dg`` is
        computed by a separate sum.
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
        # Stored as (dz - H dg) |v| / (v^T dg) and v / |v|: both are of moderate size in any dtype.
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
    """``step - c (d . g)`` for the pair that is dropped, in the memory of its ``c``; ``step`` if none is dropped."""
    history = state.history
    if history.oldest is None:
        return step
    oldest = slice(history.oldest, history.oldest + 1)
    along = _masked(state.products[:, oldest], history.valid[:, oldest])
    return add_combination(step, history.columns[0][:, oldest], -along, out=history.room(0))


def _own(tensor: Tensor) -> Tensor | None:
    """The tensor itself as memory to write into; None while autograd records, when nothing may be overwritten."""
    return None if torch.is_grad_enabled() else tensor


def _masked(weights: Float[Tensor, "B m"], valid: Bool[Tensor, "B m"]) -> Float[Tensor, "B 1 m"]:
    return torch.where(valid, weights, torch.zeros_like(weights)).unsqueeze(1)
