"""Provides the initial values of states that enter a window: ``IncomingStates``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.joint.window import HostMask, Window
from fixedpoint.core.transfer import to_device

__all__ = ["IncomingStates"]


@dataclass(frozen=True, eq=False)
class IncomingStates:
    """Computes the states that enter a window from the last state that was in it.

    The last state is moved by the change of a given trajectory, or by the extension of its step, or copied unchanged.

    Attributes
    ----------
    guess
        Shape ``(B, N, d)``: a trajectory, whose change from the last state onwards is added to it; or None.
    extended
        Whether to use the extension of the last step in the window when ``guess`` is None. It is shifted by the
        difference between the last state and the value of its step.
    """

    guess: Float[Tensor, "B N d"] | None
    extended: bool

    def fill(self, window: Window, states: Float[Tensor, "B p d"], entered: HostMask) -> Float[Tensor, "B p d"]:
        """Fill the states that have entered into ``states``: in place unless autograd records.

        Parameters
        ----------
        window
            The window after it has slid, with the states of the previous round.
        states
            Shape ``(B, p, d)``: the states of the next round.
        entered
            Shape ``(B, p)``: True for the steps that have entered, which are the last ones of each row.
        """
        rows, slots = np.nonzero(entered)
        width = window.width
        # Slot of the last state that was in the window, of every row; -1 is the base.
        ends = width - entered.sum(axis=1) - 1
        last = ends[rows]
        flat = states.flatten(0, 1)
        found = flat.index_select(0, window.place(np.arange(len(ends)) * width + np.maximum(ends, 0)))
        found = torch.where(to_device(ends < 0, found.device).unsqueeze(1), window.base[:, -1], found)
        base = found.index_select(0, window.place(rows))
        if self.guess is not None:
            base = base + self._ahead(self.guess, window, rows, slots, last)
        elif self.extended:
            base = self._extension(window, base, rows, slots, last)
        places = window.place(rows * width + slots)
        if torch.is_grad_enabled():
            return flat.index_copy(0, places, base).view(states.shape)
        flat.index_copy_(0, places, base)
        return states

    @staticmethod
    def _ahead(
        guess: Float[Tensor, "B N d"],
        window: Window,
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        last: NDArray[np.int64],
    ) -> Float[Tensor, "P d"]:
        """Return the change of the trajectory from the last state that was in the window to those that enter."""
        flat, start = guess.flatten(0, 1), rows * guess.shape[1] + window.offset[rows]
        before = np.maximum(start + last, rows * guess.shape[1])
        return flat.index_select(0, window.place(start + slots)) - flat.index_select(0, window.place(before))

    def _extension(
        self,
        window: Window,
        base: Float[Tensor, "P d"],
        rows: NDArray[np.int64],
        slots: NDArray[np.int64],
        last: NDArray[np.int64],
    ) -> Float[Tensor, "P d"]:
        """Extend the last step that was in the window; return ``base`` where the window no longer holds that step."""
        step, event = np.maximum(last, 0), window.problem.x0.shape[1:]
        value = window.predictions.flatten(0, 1).index_select(0, window.place(rows * window.width + step))
        jumped = window.problem.extend(
            window.inputs(rows, step).view(-1, *event),
            value.view(-1, *event),
            window.place(window.offset[rows] + step),
            window.place(window.offset[rows] + slots + 1),
            window.place(rows),
        ).flatten(1)
        inside = to_device(last >= 0, base.device).unsqueeze(1)
        usable = inside & jumped.isfinite().all(dim=1, keepdim=True)
        # The last state is no longer the value that its step was extended from: shift the prediction with it.
        return torch.where(usable, jumped + (base - value), base)
