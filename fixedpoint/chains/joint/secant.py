r"""Block secants: the slope of every step of a chain, corrected by how that step changed in the last rounds.

A sweep uses ``A_i`` as the slope of ``Phi_i``. Two rounds give more information on it: the input of step ``i`` moved by
``dx_i``, and its value by ``dPhi_i``. With orthonormal ``q`` that span the last ``m`` moves, and ``e = (dPhi - A dx)``
in that basis,

    A_i + sum_j e_ij q_ij^T

is the slope nearest to ``A_i`` that agrees with the observed moves (the multisecant update of Fang & Saad 2009, applied
to each step). The sweep becomes ``delta_{i+1} = r_i + A_i delta_i + sum_j e_ij (q_ij . delta_i)``: ``m`` inner products
and sums per step, in a loop over the steps, instead of one running sum. It needs no additional evaluations.

The Jacobian of a chain has no entries other than these slopes, so secants of single steps use all the information of a
round. A secant of the whole state, as in Anderson's or Broyden's method, has one number per pair for all steps
together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.chains.joint.accelerator import Accelerator, Window
from fixedpoint.chains.joint.shift import Shift
from fixedpoint.chains.slope.linear import LinearPart
from fixedpoint.core.reduce import block_dots, row_dots

__all__ = ["SecantState", "Secants"]

# Moves shorter than this many units of rounding of the state carry no information on the slope.
_NOISE = 64.0
# An older move is dropped if less than this share of it is orthogonal to the newer ones.
_NEW = 0.1


@dataclass(frozen=True)
class SecantState:
    """The history of the steps of a window.

    Attributes
    ----------
    inputs, values
        Shape ``(B, p, d)``: inputs and values of the steps in the last round; None before the first one.
    linked
        Shape ``(B, p)``: True for steps whose inputs and values of the last round are known.
    moves, misses
        At most ``m`` tensors, shape ``(B, p, d)``, the newest first: ``q`` and ``e`` of every step.
    """

    inputs: Float[Tensor, "B p d"] | None
    values: Float[Tensor, "B p d"] | None
    linked: Bool[Tensor, "B p"]
    moves: tuple[Float[Tensor, "B p d"], ...] = ()
    misses: tuple[Float[Tensor, "B p d"], ...] = ()


class Secants(Accelerator[SecantState]):
    """An accelerator that corrects the known slope of every step by its last ``memory`` moves of input and value."""

    memory: int

    def init(self, window: Window) -> SecantState:
        return SecantState(None, None, torch.zeros_like(window.inputs[..., 0], dtype=torch.bool))

    def propose(self, window: Window, state: SecantState) -> tuple[Float[Tensor, "B p d"], SecantState]:
        linear = window.linear
        assert isinstance(linear, LinearPart)  # checked on construction
        slopes = _slopes(linear, window).to(window.states.dtype)
        if window.fresh is not None:
            state = replace(state, linked=state.linked & ~window.fresh)
        state = self._extended(slopes, window, state)
        defects = window.defects
        changes = [defects[:, 0]]
        bases = torch.stack([*state.moves, *state.misses], dim=2) if state.moves else None
        for i in range(1, defects.shape[1]):
            before = changes[-1]
            change = torch.addcmul(defects[:, i], slopes[:, i], before)
            if bases is not None:
                moves, misses = bases[:, i].chunk(2, dim=1)
                # Elementwise over rows, in a fixed order: a row has the same bits whatever its batch.
                along = row_dots(moves, before).to(before.dtype)
                for j in range(along.shape[1]):
                    change = torch.addcmul(change, misses[:, j], along[:, j : j + 1])
            changes.append(change)
        return window.states + torch.stack(changes, dim=1), state

    def reset(self, state: SecantState, rows: Bool[Tensor, " B"]) -> SecantState:
        column = rows.view(-1, 1, 1)
        moves, misses = (
            tuple(torch.where(column, 0.0, part) for part in parts) for parts in (state.moves, state.misses)
        )
        return replace(state, linked=state.linked & ~rows.unsqueeze(1), moves=moves, misses=misses)

    def slide(self, state: SecantState, shift: Shift) -> SecantState:
        if state.inputs is None or state.values is None:
            return state
        moves, misses = (tuple(shift.of_blocks(part) for part in parts) for parts in (state.moves, state.misses))
        inputs, values, linked = (shift.of_blocks(part) for part in (state.inputs, state.values, state.linked))
        return SecantState(inputs, values, linked, moves, misses)

    def _extended(self, slopes: Float[Tensor, "B p 1"], window: Window, state: SecantState) -> SecantState:
        """Add the moves of the last round by Gram-Schmidt, the newest first, and drop the oldest."""
        inputs, values = window.inputs, window.values
        linked = torch.ones_like(state.linked)
        if state.inputs is None or state.values is None:
            return replace(state, inputs=inputs, values=values, linked=linked)
        move = inputs - state.inputs
        miss = values - state.values - slopes * move
        floor = _NOISE * torch.finfo(inputs.dtype).eps * _lengths(inputs)
        moves: list[Tensor] = []
        misses: list[Tensor] = []
        # An infinite floor drops the move of steps that have no known last round.
        floor = torch.where(state.linked, floor, torch.inf)
        for q, e, least in (
            (move, miss, floor),
            *((q, e, torch.full_like(floor, _NEW)) for q, e in zip(state.moves, state.misses, strict=True)),
        ):
            for other, its in zip(moves, misses, strict=True):
                along = _dots(other, q).to(q.dtype).unsqueeze(2)
                q, e = q - along * other, e - along * its
            length = _lengths(q)
            kept = (length > least) & _lengths(e).isfinite()
            scale = torch.where(kept, 1.0 / torch.where(kept, length, 1.0), 0.0).to(q.dtype).unsqueeze(2)
            moves.append(torch.where(kept.unsqueeze(2), q * scale, 0.0))
            misses.append(torch.where(kept.unsqueeze(2), e * scale, 0.0))
        return SecantState(inputs, values, linked, tuple(moves[: self.memory]), tuple(misses[: self.memory]))


def _slopes(linear: LinearPart, window: Window) -> Float[Tensor, "b p 1"]:
    """Return ``A`` of the window's steps: for every row, or once if all windows begin at step 0."""
    steps = torch.arange(window.states.shape[1], device=linear.slopes.device)
    first = torch.zeros_like(steps[:1]) if window.first is None else window.first
    chosen: Tensor = linear.slopes[(first.unsqueeze(1) + steps).clamp(max=len(linear) - 1)]
    return chosen.unsqueeze(2)


def _dots(left: Float[Tensor, "B n d"], right: Float[Tensor, "B n d"]) -> Float[Tensor, "B n"]:
    return block_dots(left.flatten(1).unsqueeze(1), right.flatten(1), left.shape[1]).squeeze(2)


def _lengths(vectors: Float[Tensor, "B n d"]) -> Float[Tensor, "B n"]:
    return _dots(vectors, vectors).sqrt()
