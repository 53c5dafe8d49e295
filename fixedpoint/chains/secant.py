r"""Block secants: the slope of every step of a chain, corrected by what was seen of that very step.

A sweep takes ``A_i`` for the slope of ``Phi_i``. Two rounds show more of it: the input of step ``i`` moved by ``dx_i``,
its value by ``dPhi_i``. With orthonormal ``q`` spanning the last ``m`` moves and ``e = (dPhi - A dx)`` in that basis,

    A_i + sum_j e_ij q_ij^T

is the slope nearest to ``A_i`` that agrees with what was seen (the multisecant update of Fang & Saad 2009, step by
step), and the sweep becomes ``delta_{i+1} = r_i + A_i delta_i + sum_j e_ij (q_ij . delta_i)``: ``m`` inner products and
sums a step, one step after another, in place of a running sum. The network is not asked for more.

A chain's Jacobian has no other entries than these slopes, so that secants of each step use all that a round shows; a
secant of the whole state, Anderson's or Broyden's, has one number per pair for all steps together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.chains.linear import LinearPart
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.point import Evaluated
from fixedpoint.core.reduce import block_dots, row_dots
from fixedpoint.core.solver import StepSolver

__all__ = ["BlockSecant", "SecantState"]

# Moves shorter than so many roundings of the state say nothing of the slope.
_NOISE = 64.0
# An older move of which less than this part is new is given up.
_NEW = 0.1


@dataclass(frozen=True)
class SecantState:
    """Inputs and values of the steps in the last round; bases ``q`` and ``e`` of every step, the newest first."""

    inputs: Float[Tensor, "B n d"] | None
    values: Float[Tensor, "B n d"] | None
    linked: Bool[Tensor, " B"]
    moves: tuple[Float[Tensor, "B n d"], ...] = ()
    misses: tuple[Float[Tensor, "B n d"], ...] = ()


@dataclass(frozen=True)
class BlockSecant(StepSolver[SecantState]):
    """For chains: corrects the preconditioner's slope of every step by the last moves of its input and value."""

    memory: int = option(1, ge=1, help="m: moves of every step that are remembered")

    needs = frozenset({"chain"})

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        raise TypeError("block-secant accelerates chains (ChainProblem); take another solver for a plain problem")

    def init(self, f: Evaluator, at: Evaluated) -> SecantState:
        return SecantState(None, None, linked=torch.zeros_like(at.finite))

    def step(self, f: Evaluator, at: Evaluated, state: SecantState) -> tuple[Any, SecantState]:
        raise TypeError("block-secant is stepped by a ChainSolver")

    def reset(self, state: SecantState, rows: Bool[Tensor, " B"]) -> SecantState:
        column = rows.view(-1, 1, 1)
        moves, misses = (
            tuple(torch.where(column, 0.0, part) for part in parts) for parts in (state.moves, state.misses)
        )
        return replace(state, linked=state.linked & ~rows, moves=moves, misses=misses)

    def sweep(
        self,
        linear: LinearPart,
        states: Float[Tensor, "B N d"],
        values: Float[Tensor, "B N d"],
        exact: int,
        state: SecantState,
    ) -> tuple[Float[Tensor, "B N d"], SecantState]:
        """The change of every state, and the secants with the last round's moves.

        Parameters
        ----------
        linear
            The slopes to be corrected.
        states, values
            ``x_1 .. x_N`` and ``Phi_0(x_0) .. Phi_{N-1}(x_{N-1})``.
        exact
            States from the start of the chain that are final.
        """
        state = self._extended(linear, states[:, :-1], values[:, 1:], state)
        defects = values - states
        changes = [defects[:, i] for i in range(exact + 1)]
        bases = torch.stack([*state.moves, *state.misses], dim=2) if state.moves else None
        slopes = linear.numbers
        for i in range(exact + 1, defects.shape[1]):
            before = changes[-1]
            change = torch.add(defects[:, i], before, alpha=slopes[i])
            if bases is not None:
                moves, misses = bases[:, i - 1].chunk(2, dim=1)
                along = row_dots(moves, before).to(before.dtype)
                for j in range(along.shape[1]):
                    change = torch.addcmul(change, misses[:, j], along[:, j : j + 1])
            changes.append(change)
        return torch.stack(changes, dim=1), state

    def _extended(
        self, linear: LinearPart, inputs: Float[Tensor, "B n d"], values: Float[Tensor, "B n d"], state: SecantState
    ) -> SecantState:
        """With the moves of the last round, orthonormal again, the oldest given up."""
        linked = torch.ones_like(state.linked)
        if state.inputs is None or state.values is None:
            return replace(state, inputs=inputs, values=values, linked=linked)
        slopes = linear.slopes[1:].to(inputs.dtype).view(1, -1, 1)
        move = inputs - state.inputs
        miss = values - state.values - slopes * move
        floor = _NOISE * torch.finfo(inputs.dtype).eps * _lengths(inputs)
        moves: list[Tensor] = []
        misses: list[Tensor] = []
        for q, e, least in (
            (move, miss, floor),
            *((q, e, torch.full_like(floor, _NEW)) for q, e in zip(state.moves, state.misses, strict=True)),
        ):
            for other, its in zip(moves, misses, strict=True):
                along = _dots(other, q).to(q.dtype).unsqueeze(2)
                q, e = q - along * other, e - along * its
            length = _lengths(q)
            kept = (length > least) & state.linked.unsqueeze(1) & _lengths(e).isfinite()
            scale = torch.where(kept, 1.0 / torch.where(kept, length, 1.0), 0.0).to(q.dtype).unsqueeze(2)
            moves.append(torch.where(kept.unsqueeze(2), q * scale, 0.0))
            misses.append(torch.where(kept.unsqueeze(2), e * scale, 0.0))
        return SecantState(inputs, values, linked, tuple(moves[: self.memory]), tuple(misses[: self.memory]))


def _dots(left: Float[Tensor, "B n d"], right: Float[Tensor, "B n d"]) -> Float[Tensor, "B n"]:
    return block_dots(left.flatten(1).unsqueeze(1), right.flatten(1), left.shape[1]).squeeze(2)


def _lengths(vectors: Float[Tensor, "B n d"]) -> Float[Tensor, "B n"]:
    return _dots(vectors, vectors).sqrt()
