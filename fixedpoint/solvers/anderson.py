r"""Anderson acceleration, type II.

With ``r_k = f(z_k) - z_k``, ``dF = [f_{j+1} - f_j]``, ``dR = [r_{j+1} - r_j]`` over the last ``m`` steps:

    gamma   = argmin || r_k - dR gamma ||
    z_{k+1} = f_k - dF gamma - (1 - beta) (r_k - dR gamma)

(Anderson 1965; Walker & Ni 2011, "Anderson acceleration for fixed-point iterations", eqs. 2.1 to 2.4.)

A state of a chain depends only on earlier states. On a chain, each state ``i`` therefore has its own ``gamma``, which
minimises the norm over the states up to ``i``. It is computed from a running sum of the inner products of the blocks
(Tang et al. 2024, "Accelerating parallel sampling of diffusion models", section 3.2, triangular Anderson acceleration).

Where we differ, and why:

- The least-squares problem is solved from an incrementally updated Gram matrix in float64, with normalised and
  filtered columns (see ``least_squares``). An absolute ridge would make the method depend on the scale of the state,
  and slower than Picard near convergence.
- A block whose residual is exactly zero is solved. Its history is noise, so its inner products are left out.
- With ``surprise``, a row forgets the oldest quarter of its columns when its residual exceeds ``surprise`` times the
  residual ``|| r - dR gamma ||`` that the previous step predicted. The residual of a linear contraction stays below
  the prediction; where the map is curved, the oldest columns are the ones that mislead.
- A row whose residual has grown to more than ``restart_growth`` times its smallest forgets its history and takes a
  plain step. If a plain step caused the growth, another one would do the same, so the row keeps the new secant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.history import History
from fixedpoint.core.inverse_jacobian import InverseEstimate, LowRankInverse
from fixedpoint.core.loop import StepSolver, SupportsWindow
from fixedpoint.core.options import option
from fixedpoint.core.problem import AbilityError
from fixedpoint.core.reduce import row_dots, row_norms
from fixedpoint.core.subset import copy_rows
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.least_squares import solve_gram
from fixedpoint.solvers.relaxation import Distance, by_gain
from fixedpoint.solvers.safeguard import Growth
from fixedpoint.solvers.weight_groups import WeightGroups

__all__ = ["Anderson", "AndersonState"]

# Fraction of the columns that a surprise removes; smallest residual that a step is taken to predict, relative to the
# present one: a residual that has fallen this far is no surprise.
_PART = 0.25
_GOOD = 1e-3


@dataclass(frozen=True)
class AndersonState:
    """What Anderson acceleration keeps between steps.

    ``history`` holds the columns ``(dF, dR)``, ``gram`` the Gram matrix of ``dR`` for every part. ``previous`` is the
    last ``(f(z), residual)``; ``linked`` marks the rows whose next difference to it is a valid column. ``growth`` holds
    the smallest residual norm, ``expected`` the residual norm that the last step predicted, float64, and ``distance``
    the state of the adaptive relaxation.
    """

    history: History
    gram: Float[Tensor, "B blocks m m"]
    previous: tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]] | None
    linked: Bool[Tensor, " B"]
    growth: Growth
    expected: Float[Tensor, " B"]
    distance: Distance


@dataclass(frozen=True)
class Anderson(StepSolver[AndersonState], SupportsWindow):
    """Anderson acceleration (type II): combines the last steps so that their residuals nearly cancel."""

    memory: int = option(5, ge=1, help="m: number of earlier steps combined")
    relaxation: float = option(1.0, gt=0.0, le=2.0, help="beta: how much of the remaining residual is added")
    adaptive: Literal["gain", "distance"] | None = option(
        None,
        help="adapt the relaxation: to the share of the residual that the history explains (gain), or to the step "
        "lengths that would have been best so far (distance)",
    )
    mixing: Literal["auto", "joint", "triangular", "block"] = option(
        "auto",
        help="one set of weights per row (joint); one per step of a chain, computed from the steps up to it "
        "(triangular); or one per step of a chain or tensor of the state, computed from it alone (block); auto: "
        "triangular for chains, else joint",
    )
    filter: float = option(
        0.0, ge=0.0, lt=1.0, help="sigma: an older column is dropped when less than this part of it is new"
    )
    ridge: float = option(0.0, ge=0.0, help="regularisation of the weights, relative to the squared columns")
    surprise: float | None = option(
        None,
        gt=1.0,
        help="ratio of the residual to the predicted one above which a row forgets the oldest quarter of its columns",
    )
    restart_growth: float = option(
        1e4, gt=1.0, help="ratio of the residual to the smallest one above which a row forgets its history"
    )

    provides = StepSolver.provides | {"inverse"}

    @property
    def known_faults(self) -> Mapping[str, str]:
        if self.mixing != "block":
            return {}
        return {"structure": "tensors of the state have weights of their own, so that it matters how it is split"}

    @property
    def supports_row_selection(self) -> bool:
        return True

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        if "inverse" in f.wanted and self._parts(f).count > 1:
            raise AbilityError(
                f"an estimate of the inverse Jacobian requires one set of weights per row (mixing='joint'), got "
                f"mixing={self.mixing!r} on {self._parts(f).count} parts"
            )
        return super().begin(f, z0)

    def init(self, f: Evaluator, at: Evaluated) -> AndersonState:
        rows, size = at.z.shape
        memory = min(self.memory, size)  # more columns than unknowns are linearly dependent
        return AndersonState(
            history=History.empty(at.z, memory, groups=2),
            gram=torch.zeros(rows, self._parts(f).count, memory, memory, dtype=torch.float64, device=at.z.device),
            previous=None,
            linked=torch.zeros(rows, dtype=torch.bool, device=at.z.device),
            growth=Growth.begin(at.residual_norm),
            expected=torch.full_like(at.residual_norm, torch.inf),
            distance=Distance.begin(at.residual_norm),
        )

    def reset(self, state: AndersonState, rows: Bool[Tensor, " B"]) -> AndersonState:
        return replace(
            state,
            history=state.history.forget(rows),
            linked=state.linked & ~rows,
            expected=torch.where(rows, torch.inf, state.expected),
        )

    def paused(self, state: AndersonState, index: Int[Tensor, " k"]) -> AndersonState:
        """Return the state of some rows with the columns in the order of their age; that of all rows is not copied."""
        part: AndersonState = state if len(index) == len(state.linked) else copy_rows(state, index)
        turned = part.history.turned
        return replace(part, history=part.history.in_order(), gram=part.gram.roll((-turned, -turned), (2, 3)))

    def slide(self, f: Evaluator, state: AndersonState, move: Callable[[Tensor], Tensor]) -> AndersonState:
        """Move all columns together with the blocks of the state."""
        history, previous, distance = state.history.slid(move), state.previous, state.distance
        if previous is not None:
            previous = move(previous[0]), move(previous[1])
        if distance.rest is not None:
            distance = replace(distance, rest=move(distance.rest))
        if state.gram.shape[1] == f.layout.blocks:
            gram = move(state.gram)
        else:  # each entry is a sum over all blocks, some of which have left: compute it again
            gram = state.gram.clone()
            changes = history.columns[1]
            for j in range(changes.shape[1]):
                gram[:, 0, history.start :, history.start + j] = row_dots(changes, changes[:, j])
        return replace(state, history=history, gram=gram, previous=previous, distance=distance)

    def renew(self, state: AndersonState, at: Evaluated, blocks: Bool[Tensor, "B blocks"]) -> AndersonState:
        """Treat these blocks as new at ``at``: the next column is zero in them."""
        if state.previous is None:
            return state
        fz, residual = (
            _renewed(new, old, blocks) for new, old in zip((at.fz, at.residual), state.previous, strict=True)
        )
        return replace(state, previous=(fz, residual))

    def step(
        self, f: Evaluator, at: Evaluated, state: AndersonState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, AndersonState]:
        size, parts = at.residual_norm, self._parts(f)
        grown, growth = state.growth.watch(size, self.restart_growth, state.history.valid.any(dim=1))
        # The estimate of the inverse belongs to the returned point: ended rows must not learn from later rounds.
        ended = None if "inverse" not in f.wanted else to_device(~f.running, at.z.device)
        state = _extended(at, replace(self.reset(state, grown), growth=growth), parts, ended)
        if self.surprise is not None:
            surprised = size > self.surprise * state.expected
            state = replace(state, history=state.history.forget_oldest(surprised, _PART))
        changes_f, changes_r = state.history.columns
        weights, expected, gain = _weights(at, state, parts, self.filter, self.ridge)
        gamma = -weights
        proposal = parts.combination(at.fz, changes_f, gamma, out=f.empty())
        if self.relaxation != 1.0 or self.adaptive is not None:
            rest = parts.combination(at.residual, changes_r, gamma)
            beta, state = self._beta(at, rest, gain, state)
            proposal = torch.addcmul(proposal, rest, (beta - 1.0).to(rest.dtype).unsqueeze(1))
        linked = torch.ones_like(state.linked)
        return proposal, replace(state, previous=(at.fz, at.residual), linked=linked, expected=expected)

    def inverse(self, state: AndersonState) -> InverseEstimate:
        r"""``H = -I + dF (dR^T dR)^{-1} dR^T``: the step is ``-H r``, and ``H dR = dZ`` holds."""
        history = state.history
        gram = state.gram[:, 0, history.start :, history.start :]
        size = torch.zeros_like(state.expected) if state.previous is None else row_norms(state.previous[0])
        noise = torch.finfo(history.storage[0].dtype).eps * size

        def small(products: Float[Tensor, "B m"]) -> Float[Tensor, "B m"]:
            return solve_gram(gram, products, history.valid, history.order, noise, self.filter, self.ridge)

        left, right = history.columns
        return LowRankInverse(left, right, small)

    def _beta(
        self, at: Evaluated, rest: Float[Tensor, "B D"], gain: Float[Tensor, " B"], state: AndersonState
    ) -> tuple[Float[Tensor, " B"], AndersonState]:
        """Return the relaxation of every row in this step, and the updated state."""
        if self.adaptive == "gain":
            return self.relaxation * by_gain(gain), state
        if self.adaptive is None:
            return torch.full_like(gain, self.relaxation), state
        distance = state.distance.seen(at, state.linked)
        beta = self.relaxation * distance.beta
        return beta, replace(state, distance=replace(distance, beta=beta, rest=rest))

    def _parts(self, f: Evaluator) -> WeightGroups:
        chain = f.layout.blocks > 1
        if self.mixing == "triangular" or (self.mixing == "auto" and chain):
            return WeightGroups(blocks=f.layout.blocks, running=True)
        if self.mixing == "block":
            return WeightGroups(blocks=f.layout.blocks, slices=() if chain else f.layout.slices)
        return WeightGroups()


def _extended(
    at: Evaluated, state: AndersonState, parts: WeightGroups, ended: Bool[Tensor, " B"] | None = None
) -> AndersonState:
    """Replace the oldest column by the newest, in history and Gram matrix; rows in ``ended`` stay unchanged."""
    if state.previous is None:
        return state
    aside = () if ended is None else state.history.set_aside()
    history = state.history.push_differences(
        (at.fz, state.previous[0]), (at.residual, state.previous[1]), valid=state.linked
    )
    changes_r = history.columns[1]
    # Only one row and one column of the Gram matrix change: m inner products instead of m^2.
    products = parts.dots(changes_r, changes_r[:, history.newest])
    gram = state.gram.clone()
    used = gram[:, :, history.start :, history.start :]
    used[:, :, history.newest] = products
    used[:, :, :, history.newest] = products
    if ended is not None:
        history = history.put_back(ended, aside)
        gram = torch.where(ended[:, None, None, None], state.gram, gram)
    return replace(state, history=history, gram=gram)


def _renewed(
    new: Float[Tensor, "B D"], old: Float[Tensor, "B D"], blocks: Bool[Tensor, "B blocks"]
) -> Float[Tensor, "B D"]:
    """``old`` with the chosen blocks of ``new``, written into the memory of ``old`` unless autograd records."""
    count = blocks.shape[1]
    one, other = new.unflatten(1, (count, -1)), old.unflatten(1, (count, -1))
    out = None if torch.is_grad_enabled() else other
    chosen: Tensor = torch.where(blocks.unsqueeze(2), one, other, out=out)
    return chosen.flatten(1)


def _squares(at: Evaluated, parts: WeightGroups) -> tuple[Float[Tensor, "B parts 1"], Float[Tensor, "B parts 1"]]:
    """Squared norms of the residual (differentiable while autograd records) and of the value, for every part."""
    if parts.count == 1 and not torch.is_grad_enabled():
        return at.residual_norm.square()[:, None, None], at.value_norm.square()[:, None, None]
    value = at.fz.detach()
    return parts.dots(at.residual.unsqueeze(1), at.residual), parts.dots(value.unsqueeze(1), value)


def _weights(
    at: Evaluated, state: AndersonState, parts: WeightGroups, threshold: float, ridge: float
) -> tuple[Float[Tensor, "B parts m"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """The weights ``gamma`` of every part, the predicted residual ``||r - dR gamma||``, and its ratio to ``||r||``.

    Parts whose residual is exactly zero contribute no inner products.
    """
    history = state.history
    rhs = parts.dots(history.columns[1], at.residual)
    squares, sizes = _squares(at, parts)
    unsolved = squares > 0
    gram = state.gram[:, :, history.start :, history.start :]
    gram = torch.where(unsolved.unsqueeze(3), gram, 0.0)
    rhs = torch.where(unsolved, rhs, 0.0)
    if parts.running:
        gram, rhs, sizes = gram.cumsum(1), rhs.cumsum(1), sizes.cumsum(1)
    gamma = solve_gram(
        gram=gram,
        rhs=rhs,
        valid=history.valid.unsqueeze(1).expand(-1, parts.count, -1),
        order=history.order,
        # A column is a difference of residuals, and carries the rounding of f(z).
        noise=torch.finfo(at.z.dtype).eps * sizes.squeeze(2).sqrt(),
        threshold=threshold,
        ridge=ridge,
    )
    # ||r||^2 - ||r - dR gamma||^2; of running sums the last one covers the whole row.
    told = gamma * (2 * rhs - (gram * gamma.unsqueeze(2)).sum(3))
    fitted = (told[:, -1:] if parts.running else told).sum(dim=(1, 2))
    total = squares.sum(1).squeeze(1)
    some = total != 0  # the square root has no derivative at zero, so solved rows take that of 1
    expected = torch.where(some, torch.maximum(total - fitted, _GOOD**2 * total), 1.0).sqrt()
    gain = expected / torch.where(some, total, 1.0).sqrt()
    return gamma, torch.where(some, expected.detach(), 0.0), torch.where(some, gain, 0.0)
