"""Stores the states of a chain: ``Buffers`` those in the window of each row, ``Trail`` those behind the window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.joint.shift import Shift
from fixedpoint.core.transfer import to_device

__all__ = ["Buffers", "Trail"]


@dataclass
class Buffers:
    """The ``p`` steps in the window of every row, starting at step ``offset``.

    Attributes
    ----------
    base
        Shape ``(B, d)``: state ``offset``, which is final.
    states
        Shape ``(B, p, d)``: states ``offset + 1 .. offset + p``.
    values
        Shape ``(B, p, d)``: the value of the step that leads to each of these states, at the state before.
    offset
        Shape ``(B,)``, int64, on the host: the number of the first step in each row's window.
    """

    base: Float[Tensor, "B d"]
    states: Float[Tensor, "B p d"]
    values: Float[Tensor, "B p d"]
    offset: NDArray[np.int64]

    @property
    def width(self) -> int:
        """``p``, the number of steps in the window."""
        return self.values.shape[1]

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Numbers of the steps in the window, shape ``(B, p)``."""
        held: NDArray[np.int64] = self.offset[:, None] + np.arange(self.width)
        return held

    def put(self, values: Float[Tensor, "P d"], rows: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Store the values of the steps in these slots."""
        places = self.place(rows * self.width + slots)
        self.values = _put(self.values, places, values)

    def before(self, rows: NDArray[np.int64], slots: NDArray[np.int64]) -> Float[Tensor, "P d"]:
        """Return the inputs of the steps in these slots."""
        places = self.place(rows * self.width + np.maximum(slots - 1, 0))
        found = self.states.flatten(0, 1).index_select(0, places)
        first = np.flatnonzero(slots == 0)
        return found.index_copy(0, self.place(first), self.base[self.place(rows[first])]) if len(first) else found

    def slide(self, shift: Shift, by: NDArray[np.int64]) -> None:
        """Slide the window of every row by ``by`` steps; states and values that enter are zero."""
        rows = np.flatnonzero(by)
        last = self.states.flatten(0, 1).index_select(0, self.place(rows * self.width + by[rows] - 1))
        self.base = self.base.index_copy(0, self.place(rows), last)
        self.states = shift.of_blocks(self.states)
        self.values = shift.of_blocks(self.values)
        self.offset = self.offset + by

    def place(self, host: NDArray[np.int64]) -> Int[Tensor, " n"]:
        """Copy indices to the device."""
        return to_device(host, self.states.device)

    def mask(self, host: NDArray[np.bool_]) -> Bool[Tensor, "..."]:
        """Copy a mask to the device."""
        return to_device(host, self.states.device)


class Trail:
    """All states and values of a chain, stored as they leave the window.

    Parameters
    ----------
    start
        Shape ``(B, N, d)``: the initial states. This tensor is overwritten.
    """

    def __init__(self, start: Float[Tensor, "B N d"]) -> None:
        self.states = start
        self.values = start.clone()

    def store(self, buffers: Buffers, leaving: NDArray[np.int64]) -> None:
        """Store the first ``leaving`` steps of every row's window."""
        rows = np.repeat(np.arange(len(leaving)), leaving)
        slots = np.arange(len(rows)) - np.repeat(np.cumsum(leaving) - leaving, leaving)
        into = buffers.place(rows * self.states.shape[1] + buffers.offset[rows] + slots)
        places = buffers.place(rows * buffers.width + slots)
        self.states = _put(self.states, into, buffers.states.flatten(0, 1).index_select(0, places))
        self.values = _put(self.values, into, buffers.values.flatten(0, 1).index_select(0, places))


def _put(kept: Float[Tensor, "B p d"], places: Int[Tensor, " P"], values: Float[Tensor, "P d"]) -> Tensor:
    """Write ``values`` at ``places``: in place, or into a copy while autograd records."""
    flat = kept.flatten(0, 1)
    if torch.is_grad_enabled():
        return flat.index_copy(0, places, values).view(kept.shape)
    flat.index_copy_(0, places, values)
    return kept
