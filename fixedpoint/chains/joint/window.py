"""The window of a joint solve: ``Window`` holds its pairs of inputs and predictions, ``Trail`` what is behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.joint.shift import Shift
from fixedpoint.chains.measure import finite_states
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.recurrence import Held
from fixedpoint.core.transfer import to_device

__all__ = ["HostMask", "Trail", "Window", "moved"]

HostMask = NDArray[np.bool_]


@dataclass
class Window:
    """The ``p`` predictions in the window of every row, starting at prediction ``offset``.

    A chain of opaque steps has no ``before``, and a state's prediction is the value of the step that leads to it.

    Attributes
    ----------
    problem
        The chain.
    base
        Shape ``(B, h + 1, d)``: inputs ``offset - h .. offset``, which are final; see ``Held``.
    states
        Shape ``(B, p, d)``: inputs ``offset + 1 .. offset + p``.
    before
        Shape ``(B, h, d)``: the predictions before the window.
    predictions
        Shape ``(B, p, d)``: the predictions in the window, each at the input where it was evaluated last.
    offset
        Shape ``(B,)``, int64, on the host: the number of the first prediction in each row's window.
    earlier
        Shape ``(B, h + 1, d)``: the changes that were implied at ``base`` and not applied; None: zero.
    """

    problem: ChainProblem
    base: Float[Tensor, "B g d"]
    states: Float[Tensor, "B p d"]
    before: Float[Tensor, "B h d"]
    predictions: Float[Tensor, "B p d"]
    offset: NDArray[np.int64]
    earlier: Float[Tensor, "B g d"] | None = None

    @classmethod
    def opened(
        cls, problem: ChainProblem, states: Float[Tensor, "B n d"], exact: NDArray[np.int64], width: int
    ) -> Window:
        """Return the first window, from all states, the first ``p`` states, or one value for all of them.

        It begins after the states that are exact, for chains of opaque steps. Exact states are the values of their
        steps.
        """
        length, x0 = problem.length, problem.x0.flatten(1)
        offset = np.zeros(len(x0), dtype=np.int64)
        base = x0.unsqueeze(1)
        if states.shape[1] < length:
            held = states.expand(-1, width, -1)
        elif width == length or not problem.memoryless:
            held = states[:, :width]
        else:
            offset = np.minimum(exact, length - width)
            places = (np.arange(len(x0)) * (length + 1) + offset)[:, None] + np.arange(width + 1)
            found = torch.cat([base, states], dim=1).flatten(0, 1)[to_device(places, x0.device)]
            base, held = found[:, :1].clone(), found[:, 1:]
        # Copies, since rounds write into these tensors.
        held, predictions = (held.clone(memory_format=torch.contiguous_format) for _ in range(2))
        # Where the window slides, it needs the pairs before it; at the start there are none.
        back = problem.recurrence.history - 1 if width < length else 0
        zeros = base.new_zeros(len(x0), back, base.shape[2])
        return cls(problem, torch.cat([zeros, base], dim=1), held, zeros.clone(), predictions, offset)

    @property
    def width(self) -> int:
        """``p``, the number of predictions in the window."""
        return self.predictions.shape[1]

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Numbers of the predictions in the window, shape ``(B, p)``."""
        held: NDArray[np.int64] = self.offset[:, None] + np.arange(self.width)
        return held

    @property
    def whole(self) -> bool:
        """Whether the window holds the whole chain."""
        return self.width == self.problem.length

    @property
    def held(self) -> Held:
        """The pairs in the window."""
        first = None if self.whole else self.place(self.offset)
        return Held(self.base, self.states, self.before, self.predictions, first)

    def values(self) -> Float[Tensor, "B p d"]:
        """Return what the pairs imply for the states; for opaque steps this is :attr:`predictions` itself."""
        values = self.problem.recurrence.values(self.held)
        if self.problem.memoryless:
            return values
        index = self.place(self.numbers.ravel())
        row = torch.arange(len(values), device=values.device).repeat_interleave(self.width)
        constants = self.problem.constants(index, row)
        return values if constants is None else values + constants.view(values.shape)

    def put(self, values: Float[Tensor, "P d"], rows: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        """Store the predictions in these slots."""
        places = self.place(rows * self.width + slots)
        self.predictions = _put(self.predictions, places, values)

    def inputs(self, rows: NDArray[np.int64], slots: NDArray[np.int64]) -> Float[Tensor, "P d"]:
        """Return the inputs of the predictions in these slots."""
        places = self.place(rows * self.width + np.maximum(slots - 1, 0))
        found = self.states.flatten(0, 1).index_select(0, places)
        first = np.flatnonzero(slots == 0)
        return found.index_copy(0, self.place(first), self.base[self.place(rows[first]), -1]) if len(first) else found

    def take_values(self, rows: NDArray[np.bool_]) -> None:
        """Let the states of these rows take the values that the pairs imply, where those are finite."""
        values = self.values()
        taken = self.mask(rows[:, None]) & finite_states(values)
        self.states = torch.where(taken.unsqueeze(2), values, self.states)

    def slide(self, shift: Shift, by: NDArray[np.int64], changes: Float[Tensor, "B p d"] | None) -> None:
        """Slide the window of every row by ``by`` predictions; what enters is zero.

        ``changes`` are those implied at the states and not applied to those that leave; None: zero, now as before.
        """
        if changes is not None:
            earlier = torch.zeros_like(self.base) if self.earlier is None else self.earlier
            self.earlier = self._passed(earlier, changes.to(earlier.dtype), by)
        self.base = self._passed(self.base, self.states, by)
        self.before = self._passed(self.before, self.predictions, by)
        self.states = shift.of_blocks(self.states)
        self.predictions = shift.of_blocks(self.predictions)
        self.offset = self.offset + by

    def place(self, host: NDArray[np.int64]) -> Int[Tensor, "..."]:
        """Copy indices to the device."""
        return to_device(host, self.states.device)

    def mask(self, host: NDArray[np.bool_]) -> Bool[Tensor, "..."]:
        """Copy a mask to the device."""
        return to_device(host, self.states.device)

    def _passed(
        self, before: Float[Tensor, "B g d"], inside: Float[Tensor, "B p d"], by: NDArray[np.int64]
    ) -> Float[Tensor, "B g d"]:
        """Return what is before the window once it has slid, of what was before it and what was inside."""
        count = before.shape[1]
        if count == 0:
            return before
        places, rows = by[:, None] + np.arange(count), np.arange(len(by))[:, None]
        kept = before.flatten(0, 1)[self.place(rows * count + np.minimum(places, count - 1))]
        left = inside.flatten(0, 1)[self.place(rows * self.width + np.maximum(places - count, 0))]
        return torch.where(self.mask(places >= count).unsqueeze(2), left, kept)


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

    def store(self, window: Window, leaving: NDArray[np.int64]) -> None:
        """Store the first ``leaving`` states of every row's window and their values."""
        values = window.values()
        rows = np.repeat(np.arange(len(leaving)), leaving)
        slots = np.arange(len(rows)) - np.repeat(np.cumsum(leaving) - leaving, leaving)
        into = window.place(rows * self.states.shape[1] + window.offset[rows] + slots)
        places = window.place(rows * window.width + slots)
        self.states = _put(self.states, into, window.states.flatten(0, 1).index_select(0, places))
        self.values = _put(self.values, into, values.flatten(0, 1).index_select(0, places))


def moved(mask: HostMask, by: NDArray[np.int64]) -> HostMask:
    """Shift a mask of the window's slots along with the window; False for slots that enter."""
    places = np.arange(mask.shape[1])[None, :] + by[:, None]
    inside = places < mask.shape[1]
    found: HostMask = np.take_along_axis(mask, np.minimum(places, mask.shape[1] - 1), axis=1) & inside
    return found


def _put(kept: Float[Tensor, "B p d"], places: Int[Tensor, " P"], values: Float[Tensor, "P d"]) -> Tensor:
    """Write ``values`` at ``places``: in place, or into a copy while autograd records."""
    flat = kept.flatten(0, 1)
    if torch.is_grad_enabled():
        return flat.index_copy(0, places, values).view(kept.shape)
    flat.index_copy_(0, places, values)
    return kept
