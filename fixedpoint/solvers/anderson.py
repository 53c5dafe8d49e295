r"""Anderson acceleration, type II.

With ``r_k = f(z_k) - z_k``, ``dF = [f_{j+1} - f_j]``, ``dR = [r_{j+1} - r_j]`` over the last ``m`` steps:

    gamma   = argmin || r_k - dR gamma ||
    z_{k+1} = f_k - dF gamma - (1 - beta) (r_k - dR gamma)

(Anderson 1965; Walker & Ni 2011, "Anderson acceleration for fixed-point iterations", eqs. 2.1 to 2.4.)

The states of a chain depend on earlier ones only. There the norm for state ``i`` runs over the states up to ``i``:
one ``gamma`` per state, from a running sum of the blocks' inner products (Tang et al. 2024, "Accelerating parallel
sampling of diffusion models", section 3.2, triangular Anderson acceleration).

Where we differ, and why:

- The small problem is solved from an incrementally updated Gram matrix in float64, its columns normalised and
  filtered (see ``least_squares``), instead of with an absolute ridge, which makes the method depend on the scale
  of the state and slower than Picard near convergence.
- A block whose residual is exactly zero is solved; its history is noise and takes no part.
- With ``surprise``, a row whose residual is that many times what its columns promised, ``|| r - dR gamma ||``, forgets
  the oldest quarter of them: a contraction keeps the promise where it is linear, and where it is curved old columns are
  what misleads.
- A row whose residual has grown by more than ``restart_growth`` over its best forgets its history and takes a
  plain step.
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
from fixedpoint.core.problem import HasSteps
from fixedpoint.core.reduce import add_combination, block_dots
from fixedpoint.core.solver import StepSolver
from fixedpoint.solvers.least_squares import solve_gram
from fixedpoint.solvers.safeguard import Growth

__all__ = ["Anderson", "AndersonState"]

# Part of a history that a surprise costs, and the fall of the residual that is no surprise, whatever was promised.
_PART = 0.25
_GOOD = 1e-3


@dataclass(frozen=True)
class AndersonState:
    """Columns ``(dF, dR)``, the Gram matrix of ``dR`` by blocks, the previous point, the residual expected next."""

    history: History
    gram: Float[Tensor, "B blocks m m"]
    previous: Evaluated | None
    linked: Bool[Tensor, " B"]
    growth: Growth
    expected: Float[Tensor, " B"]


@dataclass(frozen=True)
class Anderson(StepSolver[AndersonState]):
    """Anderson acceleration (type II): combines the last steps so that their residuals nearly cancel."""

    memory: int = option(5, ge=1, help="m: number of earlier steps combined")
    relaxation: float = option(1.0, gt=0.0, le=2.0, help="beta: how much of the remaining residual is added")
    mixing: Literal["auto", "joint", "triangular"] = option(
        "auto",
        help="one set of weights per row (joint), or one per step of a chain from the steps up to it (triangular); "
        "auto: triangular for chains, joint otherwise",
    )
    filter: float = option(
        0.0, ge=0.0, lt=1.0, help="sigma: an older column is dropped when less than this part of it is new"
    )
    ridge: float = option(0.0, ge=0.0, help="regularisation of the weights, relative to the squared columns")
    surprise: float | None = option(
        None,
        gt=1.0,
        help="residual over the one the columns promised, beyond which a row forgets the oldest quarter of them",
    )
    restart_growth: float = option(
        1e2, gt=1.0, help="growth of the residual over its best that makes a row forget its history"
    )

    def init(self, f: Evaluator, at: Evaluated) -> AndersonState:
        rows, size = at.z.shape
        memory = min(self.memory, size)
        blocks = f.layout.blocks if self._triangular(f) else 1
        return AndersonState(
            history=History.empty(at.z, memory, groups=2),
            gram=torch.zeros(rows, blocks, memory, memory, dtype=torch.float64, device=at.z.device),
            previous=None,
            linked=torch.zeros(rows, dtype=torch.bool, device=at.z.device),
            growth=Growth.begin(at.residual_norm),
            expected=torch.full_like(at.residual_norm, torch.inf),
        )

    def reset(self, state: AndersonState, rows: Bool[Tensor, " B"]) -> AndersonState:
        return replace(
            state,
            history=state.history.forget(rows),
            linked=state.linked & ~rows,
            expected=torch.where(rows, torch.inf, state.expected),
        )

    def step(
        self, f: Evaluator, at: Evaluated, state: AndersonState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, AndersonState]:
        size = at.residual_norm
        grown, growth = state.growth.watch(size, self.restart_growth)
        state = _extended(at, replace(self.reset(state, grown), growth=growth))
        if self.surprise is not None:
            surprised = size > self.surprise * state.expected
            state = replace(state, history=state.history.forget_oldest(surprised, _PART))
        changes_f, changes_r = state.history.columns
        weights, expected = _weights(at, state, self.filter, self.ridge)
        gamma = -weights
        proposal = add_combination(at.fz, changes_f, gamma, out=f.empty())
        if self.relaxation != 1.0:
            rest = add_combination(at.residual, changes_r, gamma)
            proposal = torch.sub(proposal, rest, alpha=1.0 - self.relaxation)
        return proposal, replace(state, previous=at, linked=torch.ones_like(state.linked), expected=expected)

    def _triangular(self, f: Evaluator) -> bool:
        return self.mixing == "triangular" or (self.mixing == "auto" and isinstance(f.problem, HasSteps))


def _extended(at: Evaluated, state: AndersonState) -> AndersonState:
    """With the newest column in place of the oldest, in history and Gram matrix."""
    if state.previous is None:
        return state
    history = state.history.push_differences(
        (at.fz, state.previous.fz), (at.residual, state.previous.residual), valid=state.linked
    )
    changes_r = history.columns[1]
    products = block_dots(changes_r, changes_r[:, history.newest], state.gram.shape[1])
    gram = state.gram.clone()
    used = gram[:, :, history.start :, history.start :]
    used[:, :, history.newest] = products
    used[:, :, :, history.newest] = products
    return replace(state, history=history, gram=gram)


def _squares(at: Evaluated, blocks: int) -> tuple[Float[Tensor, "B blocks 1"], Float[Tensor, "B blocks 1"]]:
    """Squared lengths of residual and value, block by block."""
    if blocks == 1:
        return at.residual_norm.square()[:, None, None], at.value_norm.square()[:, None, None]
    residual, value = at.residual.detach(), at.fz.detach()
    return block_dots(residual.unsqueeze(1), residual, blocks), block_dots(value.unsqueeze(1), value, blocks)


def _weights(
    at: Evaluated, state: AndersonState, threshold: float, ridge: float
) -> tuple[Float[Tensor, "B blocks m"], Float[Tensor, " B"]]:
    """``gamma`` of every block, from the inner products of the unsolved blocks up to it; and ``||r - dR gamma||``."""
    history, blocks = state.history, state.gram.shape[1]
    rhs = block_dots(history.columns[1], at.residual, blocks)
    squares, sizes = _squares(at, blocks)
    unsolved = squares > 0
    noise = torch.finfo(at.z.dtype).eps * sizes.cumsum(1).squeeze(2).sqrt()
    gram = state.gram[:, :, history.start :, history.start :]
    gram = torch.where(unsolved.unsqueeze(3), gram, 0.0).cumsum(1)
    rhs = torch.where(unsolved, rhs, 0.0).cumsum(1)
    gamma = solve_gram(
        gram=gram,
        rhs=rhs,
        valid=history.valid.unsqueeze(1).expand(-1, blocks, -1),
        order=history.order,
        noise=noise,
        threshold=threshold,
        ridge=ridge,
    )
    last, total = gamma[:, -1].detach(), squares.sum(1).squeeze(1)
    fitted = (last * (2 * rhs[:, -1] - (gram[:, -1] * last.unsqueeze(1)).sum(2))).sum(1)
    return gamma, torch.maximum(total - fitted, _GOOD**2 * total).sqrt()
