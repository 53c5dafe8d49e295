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

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.history import History
from fixedpoint.core.inverse_jacobian import InverseEstimate, LowRankInverse
from fixedpoint.core.loop import StepSolver, SupportsWindow
from fixedpoint.core.options import option
from fixedpoint.core.problem import AbilityError
from fixedpoint.core.reduce import row_dots, row_norms
from fixedpoint.core.small import where
from fixedpoint.core.subset import copy_rows
from fixedpoint.core.transfer import to_device, to_host
from fixedpoint.solvers.gram import Gram, Sums, weights_of
from fixedpoint.solvers.least_squares import solve_gram
from fixedpoint.solvers.relaxation import Distance, by_gain
from fixedpoint.solvers.row_numbers import (
    as_tensor,
    constant,
    everywhere,
    norm_of,
    rows_first,
    rows_last,
    squares_known,
)
from fixedpoint.solvers.safeguard import Growth
from fixedpoint.solvers.weight_groups import WeightGroups, renewed_blocks

__all__ = ["Anderson", "AndersonState"]

# Fraction of the columns that a surprise removes.
_PART = 0.25


@dataclass(frozen=True)
class AndersonState:
    """What Anderson acceleration keeps between steps.

    ``history`` holds the columns ``(dF, dR)``, ``gram`` the Gram matrix of ``dR`` for every part. ``previous`` is the
    last ``(f(z), residual)``; ``linked`` marks the rows whose next difference to it is a valid column. ``growth`` holds
    the smallest residual norm, ``expected`` the residual norm that the last step predicted, float64, and ``distance``
    the state of the adaptive relaxation. ``known`` is what the loop has read of the sums of the next step.

    The numbers of rows are arrays on the host, or tensors: while autograd records, where an estimate of the inverse is
    wanted, and on a device whose numbers the loop does not read.
    """

    history: History
    gram: Gram
    previous: tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]] | None
    linked: Any
    growth: Growth
    expected: Any
    distance: Distance
    known: tuple[NDArray[np.float64], ...] = ()


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
        on_host = f.has_numbers
        # Nothing is read of the first point yet.
        unknown: Any = np.full(rows, np.inf) if on_host else torch.full_like(at.residual_norm, torch.inf)
        return AndersonState(
            history=History.empty(at.z, memory, groups=2, on_host=on_host),
            gram=Gram.zero(rows, self._parts(f).count, memory, None if on_host else at.z.device),
            previous=None,
            linked=everywhere(unknown, False),
            growth=Growth(unknown),
            expected=unknown,
            distance=Distance.begin(at.residual_norm),
        )

    def reset(self, state: AndersonState, rows: Any) -> AndersonState:
        if state.gram.on_host and isinstance(rows, Tensor):
            rows = rows.cpu().numpy()
        return replace(
            state,
            history=state.history.forget(rows),
            linked=state.linked & ~rows,
            expected=where(rows, math.inf, state.expected),
        )

    def reset_on_host(self, state: AndersonState, rows: NDArray[np.bool_], device: torch.device) -> AndersonState:
        return self.reset(state, rows if state.gram.on_host else to_device(rows, device))

    def asked(self, f: Evaluator, at: Evaluated, state: AndersonState) -> list[Tensor]:
        """Return the inner products of the columns; the newest column is written already."""
        return list(self._written(at, state, self._parts(f))[1]) if state.gram.on_host else []

    def told(self, state: AndersonState, numbers: list[NDArray[Any]]) -> AndersonState:
        return replace(state, known=tuple(numbers))

    def paused(self, state: AndersonState, index: Int[Tensor, " k"]) -> AndersonState:
        """Return the state of some rows with the columns in the order of their age; that of all rows is not copied."""
        part: AndersonState = state if len(index) == len(state.linked) else copy_rows(state, index)
        return replace(part, history=part.history.in_order(), gram=part.gram.turned(part.history.turned))

    def slide(self, f: Evaluator, state: AndersonState, move: Callable[[Tensor], Tensor]) -> AndersonState:
        """Move all columns together with the blocks of the state."""
        history, previous, distance = state.history.slid(move), state.previous, state.distance
        if previous is not None:
            previous = move(previous[0]), move(previous[1])
        if distance.rest is not None:
            distance = replace(distance, rest=move(distance.rest))
        gram, changes = state.gram, history.columns[1]
        if gram.parts == f.layout.blocks:
            gram = gram.slid(move)
        else:  # each entry is a sum over all blocks, some of which have left: compute it again
            for j in range(changes.shape[1]):
                products = row_dots(changes, changes[:, j]).unsqueeze(1)
                gram = gram.with_newest(history.start, j, rows_last(products, gram.on_host))
        return replace(state, history=history, gram=gram, previous=previous, distance=distance)

    def renew(self, state: AndersonState, at: Evaluated, blocks: Bool[Tensor, "B blocks"]) -> AndersonState:
        """Treat these blocks as new at ``at``: the next column is zero in them."""
        if state.previous is None:
            return state
        fz, residual = (
            renewed_blocks(new, old, blocks) for new, old in zip((at.fz, at.residual), state.previous, strict=True)
        )
        return replace(state, previous=(fz, residual))

    @np.errstate(all="ignore")
    def step(
        self, f: Evaluator, at: Evaluated, state: AndersonState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, AndersonState]:
        parts, on_host = self._parts(f), state.gram.on_host
        size = norm_of(at, on_host)
        grown, growth = state.growth.watch(size, self.restart_growth)
        if not on_host or grown.any():
            state = self.reset(state, grown & state.history.valid.any(1))
        history, gram, sums = self._extended(f, at, state, parts)
        if self.surprise is not None:
            surprised = size > self.surprise * state.expected
            if not on_host or surprised.any():
                history = history.forget_oldest(surprised, _PART)
        changes_f, changes_r = history.columns
        found = weights_of(
            gram.products[history.start :, history.start :],
            sums,
            history.valid.T,
            history.order,
            torch.finfo(at.z.dtype).eps,
            running=parts.running,
            threshold=self.filter,
            ridge=self.ridge,
            predicts=self.surprise is not None or self.adaptive == "gain",
            guess=gram.dropped,
        )
        gamma = rows_first(-found.gamma, at.z)
        proposal = parts.combination(at.fz, changes_f, gamma, out=f.empty())
        if self.relaxation != 1.0 or self.adaptive is not None:
            rest = parts.combination(at.residual, changes_r, gamma)
            beta, state = self._beta(at, rest, found.gain, state)
            proposal = torch.addcmul(proposal, rest, (beta - 1.0).to(rest.dtype).unsqueeze(1))
        return proposal, AndersonState(
            history,
            gram.after(history.start, found.gamma),
            previous=(at.fz, at.residual),
            linked=everywhere(size, True),
            growth=growth,
            expected=state.expected if found.expected is None else constant(found.expected),
            distance=state.distance,
        )

    def inverse(self, state: AndersonState) -> InverseEstimate:
        r"""``H = -I + dF (dR^T dR)^{-1} dR^T``: the step is ``-H r``, and ``H dR = dZ`` holds."""
        history = state.history
        gram = state.gram.products[history.start :, history.start :, 0].movedim(2, 0)
        size = torch.zeros_like(state.expected) if state.previous is None else row_norms(state.previous[0])
        noise = torch.finfo(history.storage[0].dtype).eps * size

        def small(products: Float[Tensor, "B m"]) -> Float[Tensor, "B m"]:
            return solve_gram(gram, products, history.valid, history.order, noise, self.filter, self.ridge)

        left, right = history.columns
        return LowRankInverse(left, right, small)

    def _beta(
        self, at: Evaluated, rest: Float[Tensor, "B D"], gain: Any, state: AndersonState
    ) -> tuple[Float[Tensor, " B"], AndersonState]:
        """Return the relaxation of every row in this step, and the updated state."""
        if self.adaptive == "gain":
            return self.relaxation * by_gain(as_tensor(gain, at.z)), state
        if self.adaptive is None:
            return torch.full_like(at.residual_norm, self.relaxation), state
        distance = state.distance.seen(at, as_tensor(state.linked, at.z))
        beta = self.relaxation * distance.beta
        return beta, replace(state, distance=replace(distance, beta=beta, rest=rest))

    def _written(self, at: Evaluated, state: AndersonState, parts: WeightGroups) -> tuple[History, tuple[Tensor, ...]]:
        """Write the newest column, and return the history with it and the sums over unknowns of the step.

        The sums are the inner products of all columns with the newest, where there is one, and with the residual, and,
        unless these are known, the squared norms of residual and value, all of shape ``(B, parts, k)``. What is written
        in place may be written once more: so the loop can read the sums before it decides about the rows.
        """
        history = state.history
        squares = [] if _are_known(at, parts) else _squares(at, parts)
        if state.previous is None:
            return history, (parts.dots(history.columns[1], at.residual), *squares)
        pairs = (at.fz, state.previous[0]), (at.residual, state.previous[1])
        history = history.push_differences(*pairs, valid=state.linked)
        changes = history.columns[1]
        column = parts.dots(changes, changes.select(1, history.newest))
        return history, (column, parts.dots(changes, at.residual), *squares)

    def _extended(
        self, f: Evaluator, at: Evaluated, state: AndersonState, parts: WeightGroups
    ) -> tuple[History, Gram, Sums]:
        """Return history and Gram matrix with the newest column in place of the oldest, and the sums of the step.

        Where an estimate of the inverse is wanted, it belongs to the returned point: rows that have ended must not
        learn from later rounds.
        """
        on_host, old, aside = state.gram.on_host, state.gram, None
        ended = None if "inverse" not in f.wanted or state.previous is None else to_device(~f.running, at.z.device)
        if state.known:
            history = state.history
            sums: tuple[Any, ...] = state.known
            history = history if state.previous is None else history.noted(state.linked)
        else:
            if ended is not None:
                aside = state.history.set_aside()
            history, tensors = self._written(at, state, parts)
            sums = tuple(to_host(*tensors)) if on_host else tensors
        last = [rows_last(part, on_host) for part in sums]
        gram = old if state.previous is None else old.with_newest(history.start, history.newest, last.pop(0))
        if ended is not None and aside is not None:
            history, gram = history.put_back(ended, aside), gram.without(ended, old)
        rhs, squares, sizes = last[0], *(squares_known(at, on_host) if len(last) == 1 else (last[1][0], last[2][0]))
        return history, gram, Sums(rhs, squares, sizes)

    def _parts(self, f: Evaluator) -> WeightGroups:
        chain = f.layout.blocks > 1
        if self.mixing == "triangular" or (self.mixing == "auto" and chain):
            return WeightGroups(blocks=f.layout.blocks, running=True)
        if self.mixing == "block":
            return WeightGroups(blocks=f.layout.blocks, slices=() if chain else f.layout.slices)
        return WeightGroups()


def _are_known(at: Evaluated, parts: WeightGroups) -> bool:
    """Whether the squared norms of residual and value of every part are those by which the point is measured."""
    return parts.count == 1 and at.plain and not torch.is_grad_enabled()


def _squares(at: Evaluated, parts: WeightGroups) -> list[Float[Tensor, "B parts 1"]]:
    """Return squared norms of the residual (differentiable while autograd records) and of the value, of every part."""
    if parts.count == 1 and not torch.is_grad_enabled():
        return [norm.square()[:, None, None] for norm in (at.residual_norm, at.value_norm)]
    value = at.fz.detach()
    return [parts.dots(at.residual.unsqueeze(1), at.residual), parts.dots(value.unsqueeze(1), value)]
