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
from fixedpoint.core.reduce import add_combination, add_combinations, row_dots, row_norms
from fixedpoint.core.solver import StepSolver
from fixedpoint.solvers.safeguard import Growth

__all__ = ["Broyden", "BroydenState"]


@dataclass(frozen=True)
class BroydenState:
    """The pairs ``(c, d)``, the previous point, and ``d_i . g`` there for every slot."""

    history: History
    previous: Evaluated | None
    linked: Bool[Tensor, " B"]
    growth: Growth
    products: Float[Tensor, "B m"]


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
            growth=Growth.begin(at.residual_norm),
            products=torch.zeros(at.z.shape[0], self.memory, dtype=torch.float64, device=at.z.device),
        )

    def reset(self, state: BroydenState, rows: Bool[Tensor, " B"]) -> BroydenState:
        return replace(state, history=state.history.forget(rows), linked=state.linked & ~rows)

    def step(
        self, f: Evaluator, at: Evaluated, state: BroydenState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, BroydenState]:
        grown, growth = state.growth.watch(at.residual_norm, self.restart_growth)
        state = replace(self.reset(state, grown), growth=growth)
        if state.previous is None:
            proposal = torch.add(at.z, at.residual, out=f.empty())
        else:
            proposal, state = self._updated(f, at, state, state.previous)
        return proposal, replace(state, previous=at, linked=torch.ones_like(state.linked))

    def _updated(
        self, f: Evaluator, at: Evaluated, state: BroydenState, previous: Evaluated
    ) -> tuple[Float[Tensor, "B D"], BroydenState]:
        """The proposal, and the state with the newest secant in place of the oldest pair.

        The pairs are read four times: once for ``d_i . g``, which with those of the point before give ``d_i . dg``,
        once for both sums of ``c_i``, and twice for ``H^T dz``.
        """
        history = state.history
        left, right = history.columns
        valid = history.surviving
        products = row_dots(right, at.residual)
        dz = at.z - previous.z
        dg = at.residual - previous.residual
        plain = torch.add(at.z, at.residual, out=f.empty())  # the memory of the previous point, now used up
        change = _masked(products - state.products[:, history.start :], valid)
        missed, proposal = add_combinations((dz + dg, plain), left, (-change, -_masked(products, valid)))
        # missed = dz - H dg
        v = add_combination(-dz, right, _masked(row_dots(left, dz), valid)) if self.update == "good" else dg
        length = row_norms(v.detach())
        denominator = row_dots(v.unsqueeze(1), dg).squeeze(1)
        sound = state.linked & (denominator.abs() > torch.finfo(at.z.dtype).eps * length * row_norms(dg.detach()))
        # The pair is kept as (dz - H dg) |v| / (v^T dg) and v / |v|, both of moderate size in any dtype.
        length = torch.where(sound, length, 1.0)
        scale = length / torch.where(sound, denominator, 1.0)
        pushed = history.push_scaled((missed, scale), (v, 1.0 / length), valid=sound)
        left, right = (group[:, pushed.newest : pushed.newest + 1] for group in pushed.columns)
        newest = torch.where(sound.unsqueeze(1), row_dots(right, at.residual), 0.0)
        proposal = add_combination(proposal, left, -newest.unsqueeze(1), out=_own(proposal))
        kept = state.products.clone()
        kept[:, history.start :] = products
        kept[:, pushed.start + pushed.newest] = newest.squeeze(1)
        return proposal, replace(state, history=pushed, products=kept)


def _own(tensor: Tensor) -> Tensor | None:
    """The tensor itself to write into, or None while gradients flow."""
    return None if torch.is_grad_enabled() else tensor


def _masked(weights: Float[Tensor, "B m"], valid: Bool[Tensor, "B m"]) -> Float[Tensor, "B 1 m"]:
    return torch.where(valid, weights, torch.zeros_like(weights)).unsqueeze(1)
