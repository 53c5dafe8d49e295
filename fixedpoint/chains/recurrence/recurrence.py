r"""How the inputs of a chain follow from its start and its earlier predictions: ``Recurrence`` and ``Shift``.

A chain evaluates ``K`` expensive predictions ``p_j = P_j(u_j)``, ``j = 0 .. K-1``. A recurrence is the cheap, exact and
causal rule that gives every input from the start ``u_0`` and the predictions before it; ``u_K`` is the result of the
chain. A joint solve needs two things of it: the inputs that given pairs of input and prediction imply, and how a small
change of an input is carried on to later ones.

    Shift     u_{j+1} = p_j, an opaque step
    Affine    u_{j+1} = sum_{i<q} (a_ji u_{j-i} + b_ji p_{j-i}) + c_j

Other kinds inherit from :class:`Recurrence`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fixedpoint.core.reduce import row_dots

__all__ = ["Held", "LowRank", "Recurrence", "Respond", "Shift", "in_window"]

# Returns the change of the prediction in a slot of the window that a change ``(B, d)`` of its input implies.
Respond = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LowRank:
    """A model of the predictions' slopes, ``sum_j e_j q_j^T`` for each of them, as a ``Respond``.

    Attributes
    ----------
    moves, misses
        Tensors of shape ``(B, p, d)``: ``q_j`` and ``e_j`` of every prediction in the window.
    """

    moves: tuple[Float[Tensor, "B p d"], ...]
    misses: tuple[Float[Tensor, "B p d"], ...]

    def __call__(self, slot: int, change: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
        response = torch.zeros_like(change)
        for move, miss in zip(self.moves, self.misses, strict=True):
            # Elementwise over rows, in a fixed order: a row has the same bits whatever its batch.
            along = row_dots(move[:, slot : slot + 1], change).to(change.dtype)
            response = torch.addcmul(response, miss[:, slot], along)
        return response


@dataclass(frozen=True, eq=False)
class Held:
    """The pairs of inputs and predictions that a window of ``p`` predictions holds.

    Its slot ``s`` holds prediction ``n = first + s`` and the input after it, ``u_{n+1}``.

    Attributes
    ----------
    base
        Shape ``(B, h + 1, d)``: the inputs ``u_{first - h} .. u_first`` before the window. ``h`` is 0 in a window of
        the whole chain, else the recurrence's ``history - 1``.
    states
        Shape ``(B, p, d)``: the inputs ``u_{first + 1} .. u_{first + p}``.
    before
        Shape ``(B, h, d)``: the predictions before the window.
    predictions
        Shape ``(B, p, d)``: the predictions in the window, ``P_n(u_n)``.
    first
        Shape ``(B,)``, int64: the first prediction in each row's window; None if it is 0 in all rows.
    """

    base: Float[Tensor, "B g d"]
    states: Float[Tensor, "B p d"]
    before: Float[Tensor, "B h d"]
    predictions: Float[Tensor, "B p d"]
    first: Int[Tensor, " B"] | None = None


class Recurrence(ABC):
    """The rule that gives the inputs of a chain's predictions.

    Attributes
    ----------
    history
        ``q``: how many of the last pairs of input and prediction the next input is made of, at least 1.
    slides
        Whether a window may begin later than at the start, given the last ``q - 1`` pairs before it.
    """

    history: int = 1
    slides: bool = True

    @abstractmethod
    def next_input(
        self, index: int, inputs: Sequence[Float[Tensor, "B d"]], predictions: Sequence[Float[Tensor, "B d"]]
    ) -> Float[Tensor, "B d"]:
        """Return ``u_{index + 1}`` without its constant, from the last ``q`` pairs, the newest first.

        It has the bits that :meth:`values` has.
        """

    @abstractmethod
    def values(self, held: Held) -> Float[Tensor, "B p d"]:
        """Return the inputs ``u_{n+1}`` that the held pairs imply, each from the pairs up to ``n`` as they are.

        The constants of the chain, such as its noise, are not part of them. The result may be a tensor of ``held``. It
        is elementwise over rows, so that a row has the same bits whatever its batch.
        """

    @abstractmethod
    def carried(
        self,
        held: Held,
        defects: Float[Tensor, "B p d"],
        slopes: Float[Tensor, " K"] | None = None,
        respond: Respond | None = None,
        earlier: Float[Tensor, "B g d"] | None = None,
    ) -> Float[Tensor, "B p d"]:
        """Return the changes ``d_{n+1}`` of all inputs in the window that their defects imply.

        To first order, ``d_{n+1} = r_n`` plus what :meth:`values` makes of the changes of the inputs before and of
        their predictions. A change ``d`` of input ``n`` changes its prediction by ``slopes[n] d + respond(s, d)``,
        where ``s`` is its slot.

        Parameters
        ----------
        held
            The window.
        defects
            ``r``: by how much the values, with the constants, differ from the states.
        slopes
            One known number per prediction, float64; None: zero.
        respond
            The rest of the model of the predictions; None: nothing.
        earlier
            Shape ``(B, h + 1, d)``: the changes of the inputs ``held.base``; None: zero. Their predictions change by
            ``slopes`` alone.
        """


class Shift(Recurrence):
    """The next input is the prediction itself: a chain of opaque steps ``x_{i+1} = Phi_i(x_i)``."""

    def next_input(
        self, index: int, inputs: Sequence[Float[Tensor, "B d"]], predictions: Sequence[Float[Tensor, "B d"]]
    ) -> Float[Tensor, "B d"]:
        return predictions[0]

    def values(self, held: Held) -> Float[Tensor, "B p d"]:
        return held.predictions

    def carried(
        self,
        held: Held,
        defects: Float[Tensor, "B p d"],
        slopes: Float[Tensor, " K"] | None = None,
        respond: Respond | None = None,
        earlier: Float[Tensor, "B g d"] | None = None,
    ) -> Float[Tensor, "B p d"]:
        count = defects.shape[1]
        numbers = None if slopes is None else in_window(slopes.to(defects.dtype), held.first, count).unsqueeze(2)
        first = defects[:, 0]
        if earlier is not None and numbers is not None:
            first = torch.addcmul(first, numbers[:, 0], earlier[:, -1].to(first.dtype))
        changes = [first]
        for slot in range(1, count):
            before, change = changes[-1], defects[:, slot]
            if numbers is not None:
                change = torch.addcmul(change, numbers[:, slot], before)
            changes.append(change if respond is None else change + respond(slot, before))
        return torch.stack(changes, dim=1)


def in_window(
    table: Shaped[Tensor, "K *rest"], first: Int[Tensor, " B"] | None, count: int
) -> Shaped[Tensor, "b p *rest"]:
    """Return the entries of a table at the predictions of a window: for every row, or once where all begin at 0.

    Beyond the end of the table its last entry is repeated.
    """
    if first is None:
        return table[:count].unsqueeze(0)
    places = first.unsqueeze(1) + torch.arange(count, device=table.device)
    chosen: Tensor = table[places.clamp(max=len(table) - 1)]
    return chosen
