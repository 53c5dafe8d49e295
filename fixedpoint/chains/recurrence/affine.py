r"""Affine recurrences: the next input is a combination of the last ``q`` pairs of input and prediction.

    u_{j+1} = sum_{i<q} (a_ji u_{j-i} + b_ji p_{j-i}) + c_j,    j = 0 .. K-1

with known numbers ``a`` and ``b``, and constants ``c_j`` such as noise. Every explicit sampler of diffusion models has
this form; ``q`` is 1 for memoryless ones and 2 for DPM-Solver++ 2M, for example.

The sweep of defects ``r`` with slopes ``S`` of the predictions is the recurrence itself, to first order:

    d_{j+1} = r_j + sum_{i<q} (a_ji + b_ji S_{j-i}) d_{j-i}

Everything is elementwise over rows: a row has the same bits whatever its batch, and those of the serial chain where its
pairs are those of the serial chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.recurrence.blocks import BLOCK, Responses, swept
from fixedpoint.chains.recurrence.recurrence import Held, LowRank, Recurrence, Respond, in_window

__all__ = ["Affine"]

T = TypeVar("T")

# The longest chain whose responses are tabulated: K^2 numbers.
_LONGEST = 4096


class Affine(Recurrence):
    """The recurrence of ``K`` predictions from tables of coefficients.

    Parameters
    ----------
    inputs, outputs
        Shape ``(K, q)``, float64: ``a_ji`` and ``b_ji``, the coefficients of ``u_{j-i}`` and ``p_{j-i}`` in
        ``u_{j+1}``; zero where ``i > j``.
    slides
        Whether a window may begin later than at the start. It needs the last ``q - 1`` pairs, so with a ``q`` like
        ``K`` nothing is gained.

    Raises
    ------
    ValueError
        When the tables have different shapes, coefficients that are not finite, or coefficients of pairs before the
        start.
    """

    def __init__(self, inputs: Float[Tensor, "..."], outputs: Float[Tensor, "..."], slides: bool = True) -> None:
        if inputs.ndim != 2 or inputs.shape != outputs.shape or 0 in inputs.shape:
            raise ValueError(
                "inputs and outputs must both have shape (K, q), with K and q at least 1, "
                f"got {tuple(inputs.shape)} and {tuple(outputs.shape)}"
            )
        self.inputs, self.outputs = inputs.to("cpu", torch.float64), outputs.to("cpu", torch.float64)
        if not bool((self.inputs.isfinite() & self.outputs.isfinite()).all()):
            raise ValueError("the coefficients of a recurrence must be finite")
        early = torch.ones(inputs.shape, dtype=torch.bool, device="cpu").triu(1)  # i > j
        if bool((self.inputs[early] != 0).any() or (self.outputs[early] != 0).any()):
            raise ValueError("coefficients of pairs before the start (i > j) must be zero")
        self.history = inputs.shape[1]
        self.slides = slides
        # Lags that no step uses cost nothing.
        self._lags = [
            (i, bool((self.inputs[:, i] != 0).any()), bool((self.outputs[:, i] != 0).any()))
            for i in range(self.history)
        ]
        self._held: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._known: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor | None, Responses]]] = {}
        self._carries: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor | None, tuple[Tensor, Tensor]]]] = {}

    @classmethod
    def dense(cls, starts: Float[Tensor, " M"], weights: Float[Tensor, "M K"]) -> Affine:
        """Return the recurrence ``u_j = L_j x_0 + sum_{i<j} B_ji p_i`` of a chain without a short history.

        Parameters
        ----------
        starts
            ``L``, shape ``(K + 1,)``, with ``L_0`` not zero.
        weights
            ``B``, shape ``(K + 1, K)``, of which only ``j > i`` is used.
        """
        count = weights.shape[1]
        inputs, outputs = (torch.zeros(count, count, dtype=torch.float64, device="cpu") for _ in range(2))
        for j in range(count):
            inputs[j, j] = starts[j + 1] / starts[0]
            outputs[j, : j + 1] = weights[j + 1, : j + 1].flip(0)
        return cls(inputs, outputs, slides=False)

    def tables(self) -> tuple[Float[Tensor, " M"], Float[Tensor, "M K"]]:
        """Return ``L`` and ``B`` of ``u_j = L_j u_0 + sum_{i<j} B_ji p_i``, shapes ``(K + 1,)`` and ``(K + 1, K)``."""
        count = len(self.inputs)
        rows = torch.zeros(count + 1, 1 + count, dtype=torch.float64, device="cpu")
        rows[0, 0] = 1.0
        for j in range(count):
            for i in range(min(self.history, j + 1)):
                rows[j + 1] += self.inputs[j, i] * rows[j - i]
                rows[j + 1, 1 + j - i] += self.outputs[j, i]
        return rows[:, 0], rows[:, 1:]

    def next_input(
        self, index: int, inputs: Sequence[Float[Tensor, "B d"]], predictions: Sequence[Float[Tensor, "B d"]]
    ) -> Float[Tensor, "B d"]:
        a, b = self._tables(inputs[0])
        total = torch.zeros_like(inputs[0])
        for i, takes_input, takes_output in self._lags[: index + 1]:
            if takes_input:
                total = torch.addcmul(total, a[index, i], inputs[i])
            if takes_output:
                total = torch.addcmul(total, b[index, i], predictions[i])
        return total

    def values(self, held: Held) -> Float[Tensor, "B p d"]:
        a, b = self._tables(held.states)
        count = held.states.shape[1]
        a, b = (in_window(table, held.first, count) for table in (a, b))
        total = torch.zeros_like(held.states)
        for i, takes_input, takes_output in self._lags:
            if takes_input:
                total = _added(total, a[..., i], held.base, held.states, held.base.shape[1] - 1, i)
            if takes_output:
                total = _added(total, b[..., i], held.before, held.predictions, held.before.shape[1], i)
        return total

    def carried(
        self,
        held: Held,
        defects: Float[Tensor, "B p d"],
        slopes: Float[Tensor, " K"] | None = None,
        respond: Respond | None = None,
        earlier: Float[Tensor, "B g d"] | None = None,
    ) -> Float[Tensor, "B p d"]:
        count, q = defects.shape[1], min(self.history, defects.shape[1])
        # In a window that holds the chain, a few operations for many predictions instead of some for each.
        whole = held.first is None and earlier is None and len(self.inputs) <= _LONGEST
        whole = whole and min(self.history, len(self.inputs)) <= BLOCK
        if whole and not torch.is_grad_enabled() and (respond is None or isinstance(respond, LowRank)):
            responses = self._responses(slopes, defects)
            if responses.bounded:
                return swept(responses, defects.clone(), respond)
        a, b = self._later(slopes, defects)
        factors, gains = (in_window(table, held.first, count).unsqueeze(3) for table in (a, b))
        total = defects.clone()
        if earlier is not None:
            for place in range(earlier.shape[1]):
                # A change of input ``first + place - h`` reaches the slots up to ``q - 1`` steps after it.
                skipped = earlier.shape[1] - 1 - place
                reached = total[:, : max(q - skipped, 0)]
                table = self._before(a, held.first, skipped).unsqueeze(2)
                reached.addcmul_(table[:, skipped : skipped + reached.shape[1]], earlier[:, place].unsqueeze(1).to(a))
        for slot in range(count - 1):
            change = total[:, slot]
            if torch.is_grad_enabled():
                change = change.clone()  # what autograd keeps must not change below
            later = total[:, slot + 1 : slot + 1 + q]
            later.addcmul_(factors[:, slot + 1, : later.shape[1]], change.unsqueeze(1))
            if respond is not None:
                answer = respond(slot + 1, change)
                later.addcmul_(gains[:, slot + 1, : later.shape[1]], answer.unsqueeze(1))
        return total

    def _responses(self, slopes: Float[Tensor, " K"] | None, like: Tensor) -> Responses:
        """Return the responses for these slopes."""

        def made() -> Responses:
            a, b = self.inputs, self.outputs
            if slopes is not None:
                rows = torch.arange(len(a), device="cpu").unsqueeze(1) - torch.arange(self.history, device="cpu")
                a = a + b * slopes.to("cpu", torch.float64)[rows.clamp(min=0)]
            return Responses.of(a, b, like)

        return _kept(self._known.setdefault((like.device, like.dtype), []), slopes, made)

    @staticmethod
    def _before(table: Float[Tensor, "K q"], first: Int[Tensor, " B"] | None, back: int) -> Float[Tensor, "b q"]:
        """Return the entries of a table at ``back`` predictions before the first one of each window."""
        return table[:1] if first is None else table[(first - back).clamp(min=0)]

    def _later(
        self, slopes: Float[Tensor, " K"] | None, like: Tensor
    ) -> tuple[Float[Tensor, "K q"], Float[Tensor, "K q"]]:
        """Return by how much a change of input ``n``, and one of its prediction, changes ``u_{n+1} .. u_{n+q}``.

        Entry ``[n, i]`` belongs to ``u_{n+1+i}``; it is zero beyond the end.
        """

        def made() -> tuple[Tensor, Tensor]:
            count = len(self.inputs)
            rows = torch.arange(count, device="cpu").unsqueeze(1) + torch.arange(self.history, device="cpu")
            inside, lag = rows < count, torch.arange(self.history, device="cpu").expand(rows.shape)
            rows = rows.clamp(max=count - 1)
            a, b = (torch.where(inside, table[rows, lag], 0.0) for table in (self.inputs, self.outputs))
            if slopes is not None:
                a = a + b * slopes.to("cpu", torch.float64).unsqueeze(1)
            return a.to(like.device, like.dtype), b.to(like.device, like.dtype)

        return _kept(self._carries.setdefault((like.device, like.dtype), []), slopes, made)

    def _tables(self, like: Tensor) -> tuple[Float[Tensor, "K q"], Float[Tensor, "K q"]]:
        """Return the coefficients on the device and in the dtype of the states."""
        key = (like.device, like.dtype)
        if key not in self._held:
            self._held[key] = self.inputs.to(*key), self.outputs.to(*key)
        return self._held[key]


def _kept(tables: list[tuple[Tensor | None, T]], slopes: Tensor | None, make: Callable[[], T]) -> T:
    """Return what belongs to these slopes among the last few, or make it; the newest is first.

    Slopes are compared by value only where they are new, since that waits for a device.
    """
    for known, table in tables:
        if known is slopes:
            return table
    equal = [
        table for known, table in tables if known is not None and slopes is not None and torch.equal(known, slopes)
    ]
    table = equal[0] if equal else make()
    tables.insert(0, (slopes, table))
    del tables[4:]
    return table


def _added(
    total: Float[Tensor, "B p d"],
    factors: Float[Tensor, "b p"],
    before: Float[Tensor, "B n d"],
    inside: Float[Tensor, "B p d"],
    newest: int,
    lag: int,
) -> Float[Tensor, "B p d"]:
    """Add to every slot ``factors`` times the entry ``lag`` steps before its own, of ``before`` followed by ``inside``.

    The entry of slot 0 itself is number ``newest``. Slots that reach back beyond the first entry get nothing.
    """
    count, head = total.shape[1], before.shape[1]
    first = max(lag - newest, 0)  # the first slot that has an entry
    cut = min(max(head + lag - newest, first), count)  # the first slot whose entry lies inside
    for slots, source in ((slice(first, cut), before), (slice(cut, count), inside)):
        if slots.start < slots.stop:
            begin = newest + slots.start - lag - (head if source is inside else 0)
            entries = source[:, begin : begin + slots.stop - slots.start]
            total[:, slots].addcmul_(factors[:, slots].unsqueeze(2), entries)
    return total
