r"""Block secants: the slope of every prediction of a chain, corrected by how it changed in the last rounds.

A sweep uses ``A_i`` as the slope of prediction ``i`` (for opaque steps, of ``Phi_i``). Two rounds give more information
on it: its input moved by ``dx_i``, and its value by ``dP_i``. With orthonormal ``q`` that span the last ``m`` moves,
and ``e = (dP - A dx)`` in that basis,

    A_i + sum_j e_ij q_ij^T

is the slope nearest to ``A_i`` that agrees with the observed moves (the multisecant update of Fang & Saad 2009, applied
to each prediction). The recurrence carries the changes along with these slopes, for opaque steps
``delta_{i+1} = r_i + A_i delta_i + sum_j e_ij (q_ij . delta_i)``: ``m`` inner products and sums per prediction, in a
loop along the chain, instead of one running sum. It needs no additional evaluations. A prediction whose input did not
move keeps its secants.

The Jacobian of a chain has no entries other than these slopes, so secants of single steps use all the information of a
round. A secant of the whole state, as in Anderson's or Broyden's method, has one number per pair for all steps
together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.chains.joint.accelerator import Accelerator, View
from fixedpoint.chains.joint.shift import Shift
from fixedpoint.chains.recurrence.linear import LinearPart
from fixedpoint.chains.recurrence.recurrence import LowRank, in_window
from fixedpoint.core.reduce import block_dots

__all__ = ["SecantState", "Secants"]

# Moves shorter than this many units of rounding of the state carry no information on the slope.
_NOISE = 64.0
# An older move is dropped if less than this share of it is orthogonal to the newer ones.
_NEW = 0.1


@dataclass
class SecantState:
    """The history of the predictions of a window. A proposal changes it, so that no more than one is in memory.

    Attributes
    ----------
    inputs, values
        Shape ``(B, p, d)``: inputs and values of the predictions in the last round; None before the first one.
    linked
        Shape ``(B, p)``: True for predictions whose inputs and values of the last round are known.
    moves, misses
        At most ``m`` tensors, shape ``(B, p, d)``, the newest first: ``q`` and ``e`` of every prediction.
    """

    inputs: Float[Tensor, "B p d"] | None
    values: Float[Tensor, "B p d"] | None
    linked: Bool[Tensor, "B p"]
    moves: tuple[Float[Tensor, "B p d"], ...] = ()
    misses: tuple[Float[Tensor, "B p d"], ...] = ()


class Secants(Accelerator[SecantState]):
    """Corrects the known slope of every prediction by its last ``memory`` moves of input and value."""

    memory: int

    takes_plain_round = False

    def init(self, view: View) -> SecantState:
        return SecantState(None, None, torch.zeros_like(view.known))

    def propose(self, view: View, state: SecantState) -> tuple[Float[Tensor, "B p d"], SecantState]:
        linear = view.linear
        assert isinstance(linear, LinearPart)  # checked on construction
        slopes = in_window(linear.slopes.to(view.states.dtype), view.held.first, view.states.shape[1]).unsqueeze(2)
        self._extend(state, slopes, view)

        corrected = LowRank(state.moves, state.misses) if state.moves else None
        changes = linear.recurrence.carried(view.held, view.defects, linear.slopes, corrected)
        return (view.states + changes if torch.is_grad_enabled() else changes.add_(view.states)), state

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

    def _extend(self, state: SecantState, slopes: Float[Tensor, "b p 1"], view: View) -> None:
        """Add the moves of the last round by Gram-Schmidt, the newest first, and drop the oldest.

        Predictions whose input did not move keep the moves they have.
        """
        inputs, values = view.inputs, view.held.predictions.clone()  # rounds write into the latter
        (before, state.inputs), (earlier, state.values) = (state.inputs, inputs), (state.values, values)
        linked, state.linked = state.linked, view.known
        if before is None or earlier is None:
            return
        # In the memory of the last round's, which is of no further use.
        move, miss = _minus(inputs, before), _minus(values, earlier)
        miss = miss - slopes * move if torch.is_grad_enabled() else miss.addcmul_(slopes, move, value=-1)
        # An infinite floor drops the move of predictions that have no known last round.
        floor = torch.where(linked, _NOISE * torch.finfo(inputs.dtype).eps * _lengths(inputs), torch.inf)
        moved = _lengths(move) > floor
        moves: list[Tensor] = []
        misses: list[Tensor] = []
        for q, e, least in (
            (move, miss, floor),
            *((q, e, torch.full_like(floor, _NEW)) for q, e in zip(state.moves, state.misses, strict=True)),
        ):
            for other, its in zip(moves, misses, strict=True):
                along = _dots(other, q).to(q.dtype).unsqueeze(2)
                q, e = torch.addcmul(q, along, other, value=-1), torch.addcmul(e, along, its, value=-1)
            length = _lengths(q)
            kept = (length > least) & _lengths(e).isfinite()
            scale = torch.where(kept, 1.0 / torch.where(kept, length, 1.0), 0.0).to(q.dtype).unsqueeze(2)
            # ``q`` and ``e`` are made here: an older pair is at least freed of the newest one.
            moves.append(_times(q, scale, kept))
            misses.append(_times(e, scale, kept))
            if len(moves) == self.memory:
                break
        state.moves, state.misses = _kept(moves, state.moves, ~moved), _kept(misses, state.misses, ~moved)


def _minus(one: Tensor, other: Tensor) -> Tensor:
    """Return the difference, in the memory of ``other`` unless autograd records."""
    return one - other if torch.is_grad_enabled() else torch.sub(one, other, out=other)


def _times(part: Float[Tensor, "B p d"], scale: Float[Tensor, "B p 1"], kept: Bool[Tensor, "B p"]) -> Tensor:
    """Return ``part`` times ``scale``, zero where it is not kept; in place unless autograd records."""
    if torch.is_grad_enabled():
        return torch.where(kept.unsqueeze(2), part * scale, 0.0)
    return part.mul_(scale).masked_fill_(~kept.unsqueeze(2), 0.0)


def _kept(new: list[Tensor], old: tuple[Tensor, ...], still: Bool[Tensor, "B p"]) -> tuple[Tensor, ...]:
    """Return the new tensors, with the old values where ``still`` is True."""
    column = still.unsqueeze(2)
    pairs = zip(new, old, strict=False)
    found = [torch.where(column, before, now, out=None if torch.is_grad_enabled() else now) for now, before in pairs]
    return (*found, *new[len(found) :])


def _dots(left: Float[Tensor, "B n d"], right: Float[Tensor, "B n d"]) -> Float[Tensor, "B n"]:
    return block_dots(left.flatten(1).unsqueeze(1), right.flatten(1), left.shape[1]).squeeze(2)


def _lengths(vectors: Float[Tensor, "B n d"]) -> Float[Tensor, "B n"]:
    return _dots(vectors, vectors).sqrt()
