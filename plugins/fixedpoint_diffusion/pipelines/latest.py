"""What the networks and the pipeline made of the states of a solve, at the latest evaluation of every step.

When a result is delivered, the pipeline's own code runs once more with these outputs. What it makes of them is compared
with what the solve took for it: a branch that random outputs did not find is not passed over in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fixedpoint_diffusion.pipelines.calls import Call
from fixedpoint_diffusion.pipelines.layout import Layout
from fixedpoint_diffusion.pipelines.passes import Step
from fixedpoint_diffusion.pipelines.trees import first_of, mapped

__all__ = ["Latest"]

# What a prediction or a state may be off by, relative to its size: rounding, and what a solve leaves of the defects.
_OFF = {torch.float16: 5e-2, torch.bfloat16: 5e-2}
_OFF_ELSE = 1e-2


class Latest:
    """The latest predictions and outputs; row ``i`` of step ``j`` is entry ``j d + i``.

    Attributes
    ----------
    predictions
        Shape ``(K d, *row)``: what the scheduler was given; None before the first evaluation.
    outputs
        Shape ``(K d, R, *out)`` for every kind of call: the outputs of the networks.
    known
        Shape ``(K d,)`` for every kind of call: which of them are known.
    """

    def __init__(self, length: int, count: int) -> None:
        self.length, self.count = length, count
        self.predictions: Float[Tensor, "Kd *row"] | None = None
        self.outputs: dict[Any, Float[Tensor, "Kd R *out"]] = {}
        self.known: dict[Any, Bool[Tensor, " Kd"]] = {}

    @torch.no_grad()
    def note(self, index: Int[Tensor, " P"], row: Int[Tensor, " P"], predictions: Float[Tensor, "P *row"]) -> None:
        """Keep the predictions of some pairs of a step and a row."""
        place = index * self.count + row
        self.predictions = _put(self.predictions, self.length * self.count, place, predictions.detach())

    @torch.no_grad()
    def note_outputs(
        self, kind: Any, index: Int[Tensor, " P"], row: Int[Tensor, " P"], outputs: Float[Tensor, "P R *out"]
    ) -> None:
        """Keep what the calls of a kind returned for some pairs of a step and a row."""
        place, length = index * self.count + row, self.length * self.count
        self.outputs[kind] = _put(self.outputs.get(kind), length, place, outputs.detach())
        if kind not in self.known:
            self.known[kind] = torch.zeros(length, dtype=torch.bool, device=place.device)
        self.known[kind][place] = True

    def prediction(self, step: int) -> Float[Tensor, "d *row"] | None:
        """Return the predictions that a step was given, row by row; None if none was noted."""
        if self.predictions is None:
            return None
        return self.predictions[step * self.count : (step + 1) * self.count]

    def complete(self, kinds: Mapping[tuple[int, int], Any]) -> bool:
        """Whether the outputs of calls are known, given the kind of each by its step and place."""
        known = {kind: mask.view(-1, self.count).all(dim=1).tolist() for kind, mask in self.known.items()}
        return all(kind in known and known[kind][step] for (step, _), kind in kinds.items())

    def output(self, call: Call, template: Any) -> Any:
        """Return the output of a whole call, like a template."""
        rows = self.outputs[call.kind][call.step * self.count : (call.step + 1) * self.count]
        whole, first = rows.transpose(0, 1).flatten(0, 1), first_of(template)
        return mapped(template, lambda _path, leaf: whole.to(leaf.dtype) if leaf is first else leaf)

    def differing(
        self,
        steps: Sequence[Step],
        own: Sequence[Tensor],
        told: Callable[[Step], Tensor],
        layout: Layout,
        solved: bool,
    ) -> str:
        """Return what the pipeline's own code does otherwise than was assumed, in words; nothing if it does not.

        Parameters
        ----------
        steps
            The steps of a pass with these outputs.
        own
            What the pipeline would have given to each of them.
        told
            What each of them was told to return.
        layout
            How samples are rows.
        solved
            Whether the states are a solution from the pipeline's own start, so that the steps lead from one to the
            next.
        """
        limit = _OFF.get(steps[0].sample.dtype, _OFF_ELSE)
        pairs = [("predictions", number, layout.rows(each), self.prediction(number)) for number, each in enumerate(own)]
        if solved:
            pairs += [("samples", step.number, _whole(step.next), told(step)) for step in steps]
        sizes = [_off(one, other) for _, _, one, other in pairs if other is not None]
        if not sizes:
            return ""
        worst = torch.stack(sizes)
        place = int(worst.argmax())
        off = float(worst[place])
        what, number, _, _ = pairs[place]
        return f"the {what} of step {number} are off by {off:.1e} of their size" if off > limit else ""


def _put(kept: Tensor | None, length: int, place: Tensor, values: Tensor) -> Tensor:
    if kept is None:
        kept = values.new_zeros(length, *values.shape[1:])
    return kept.index_copy_(0, place, values.to(kept.dtype))


def _whole(sample: Tensor | None) -> Tensor:
    assert sample is not None
    return sample


def _off(one: Tensor, other: Tensor) -> Tensor:
    """The largest relative difference of a row; zero where it is not finite, which the solve says."""
    change = (one.double() - other.double()).flatten(1).norm(dim=1)
    size = other.double().flatten(1).norm(dim=1)
    return torch.where(size > 0, change / size, 0.0).nan_to_num(0.0, 0.0, 0.0).max()
