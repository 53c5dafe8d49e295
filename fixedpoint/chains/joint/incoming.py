"""IncomingStates: what the states that a window comes to start from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.joint.buffers import Buffers
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.transfer import to_device

__all__ = ["IncomingStates"]


@dataclass(frozen=True, eq=False)
class IncomingStates:
    """The last state there was goes on as a trajectory did, as its own jump predicts, or unchanged.

    Attributes
    ----------
    problem
        The chain.
    guess
        Shape ``(B, N, d)``: a trajectory, of which the change from the last state on is taken; or None.
    extended
        Whether, without one, states are the jumps of the last step there was, moved as far as its own state has been.
    """

    problem: ChainProblem
    guess: Float[Tensor, "B N d"] | None
    extended: bool

    def fill(
        self, buffers: Buffers, states: Float[Tensor, "B p d"], entered: NDArray[np.bool_]
    ) -> Float[Tensor, "B p d"]:
        """The states of the next round with those that have entered; in their memory unless gradients flow.

        Parameters
        ----------
        buffers
            The window where it is now, before this round's states.
        states
            This round's.
        entered
            Shape ``(B, p)``: the last ones of every row.
        """
        rows, slots = np.nonzero(entered)
        width = buffers.width
        last = width - entered.sum(axis=1)[rows] - 1  # slot of the last state there was; -1: the base
        flat = states.flatten(0, 1)
        base = flat.index_select(0, buffers.place(rows * width + np.maximum(last, 0)))
        outside = to_device(last < 0, base.device).unsqueeze(1)
        base = torch.where(outside, buffers.base[buffers.place(rows)], base)
        if self.guess is not None:
            base = base + self._ahead(self.guess, buffers, rows, slots, last)
        elif self.extended:
            base = self._extension(buffers, base, rows, slots, last)
        places = buffers.place(rows * width + slots)
        if torch.is_grad_enabled():
            return flat.index_copy(0, places, base).view(states.shape)
        flat.index_copy_(0, places, base)
        return states

    @staticmethod
    def _ahead(
        guess: Float[Tensor, "B N d"],
        buffers: Buffers,
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        last: NDArray[np.int64],
    ) -> Float[Tensor, "P d"]:
        """How far the trajectory goes from the last state there was to those that enter."""
        flat, start = guess.flatten(0, 1), rows * guess.shape[1] + buffers.offset[rows]
        before = np.maximum(start + last, rows * guess.shape[1])
        return flat.index_select(0, buffers.place(start + slots)) - flat.index_select(0, buffers.place(before))

    def _extension(
        self,
        buffers: Buffers,
        base: Float[Tensor, "P d"],
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        last: NDArray[np.int64],
    ) -> Float[Tensor, "P d"]:
        """The jumps of the last step there was, where the window holds it."""
        step, event = np.maximum(last, 0), self.problem.x0.shape[1:]
        value = buffers.values.flatten(0, 1).index_select(0, buffers.place(rows * buffers.width + step))
        jumped = self.problem.extend(
            buffers.before(rows, step).view(-1, *event),
            value.view(-1, *event),
            buffers.place(buffers.offset[rows] + step),
            buffers.place(buffers.offset[rows] + slots + 1),
            buffers.place(rows),
        ).flatten(1)
        inside = to_device(last >= 0, base.device).unsqueeze(1)
        usable = inside & jumped.isfinite().all(dim=1, keepdim=True)
        return torch.where(usable, jumped + (base - value), base)
