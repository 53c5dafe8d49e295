"""``Loop``: the denoising loop of one pipeline call, whose network calls are evaluated together.

The states are the samples that the scheduler's steps return, as rows of a chain: an image is a row. Where an image has
several samples (a pipeline that guides by a doubled batch of latents), they are held in one row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint_diffusion.pipelines.batches import check_merged, same_tensors
from fixedpoint_diffusion.pipelines.calls import Call
from fixedpoint_diffusion.pipelines.latest import Latest
from fixedpoint_diffusion.pipelines.layout import Layout
from fixedpoint_diffusion.pipelines.noise import check_noise, drawn, instead
from fixedpoint_diffusion.pipelines.passes import Step
from fixedpoint_diffusion.pipelines.replay import Replay
from fixedpoint_diffusion.pipelines.sweep import BareSteps, Sweep
from fixedpoint_diffusion.pipelines.trees import Path, first_of

__all__ = ["Loop"]


@dataclass(eq=False)
class Loop:
    """The loop of one call of a pipeline.

    Attributes
    ----------
    replay
        The call.
    steps
        The steps of a pass with arbitrary outputs of the networks.
    layout
        How samples are rows.
    start
        Shape ``(d, *row)``: the sample that the first step is given.
    templates
        An output for every kind of network call, with arbitrary numbers; see :meth:`template`.
    dtypes
        The dtypes in which the pipeline gives tensors to its networks, by network and path.
    levels
        For every step and call that requires the outputs of other calls before the same step, how many of them it has
        to wait for.
    feeding
        The step and place of calls whose outputs become arguments of others before the same step, and nothing else;
        None if they also become something else.
    skips
        Whether a pass that only records calls may leave out the scheduler's steps.
    most
        The largest number of rows in one batch of a network; None: no limit.
    scale
        What the pipeline multiplies its argument ``latents`` by to get the start; None where it takes no ``latents``.
    keeps_latents
        Whether steps after the first one use the argument ``latents``, too.
    noise
        Shape ``(d, M, *row)``: what the steps draw, in place of the generator's numbers; None: those.
    first
        The first network call of the pipeline and its output, which a merged batch has to reproduce; None once it has.
    bare
        The scheduler's steps alone, if the pipeline leaves the samples between two steps as they are; else None.
    latest
        The predictions and outputs of the latest evaluations.
    """

    replay: Replay
    steps: Sequence[Step]
    layout: Layout
    start: Float[Tensor, "d *row"]
    templates: dict[Any, Any]
    dtypes: dict[tuple[str, Path], torch.dtype]
    levels: dict[tuple[int, int], int] = field(default_factory=dict)
    feeding: frozenset[tuple[int, int]] | None = frozenset()
    skips: bool = False
    most: int | None = None
    scale: float | None = None
    keeps_latents: bool = False
    noise: Float[Tensor, "d M *row"] | None = None
    first: tuple[Call, Any] | None = None
    bare: BareSteps | None = None
    latest: Latest = field(init=False)

    def __post_init__(self) -> None:
        self.latest = Latest(self.length, self.layout.count)

    @property
    def length(self) -> int:
        """``K``, the number of the scheduler's steps."""
        return len(self.steps)

    def template(self, call: Call) -> Any:
        """Return an output of the kind that a call has."""
        kind = call.kind
        if kind not in self.templates:
            raise self.changed()
        return self.templates[kind]

    def check_counts(self, counts: Sequence[int], length: int) -> None:
        """Raise an error if a pass took other steps than it had to, or made more or fewer calls before one.

        Parameters
        ----------
        counts
            The numbers of calls before each step.
        length
            The number of steps that it had to take.
        """
        if len(counts) != length or any(len(b.calls) != a for a, b in zip(counts, self.steps, strict=False)):
            raise self.changed()

    def forget(self) -> None:
        """Let go of the numbers in ``steps``, once the form of the loop is known: they are as large as many states."""
        _ = self.known_outputs
        for step in self.steps:
            step.forget()

    def changed(self) -> ValueError:
        """Return the error of a pass that went otherwise than those before it."""
        return ValueError(
            f"{type(self.replay.pipe).__name__} took other steps, or called its networks otherwise, with these images "
            f"than with others ({self.length} steps); such a loop is not one fixed point"
        )

    def representative_steps(self, own: Callable[[Step], set[object]] | None = None) -> tuple[int, ...]:
        """Return numbers of steps that together use all that any step uses, and what ``own`` says of them."""
        found: list[int] = []
        used: set[Any] = set()
        for step in self.steps:
            uses = {call.kind for call in step.calls} | {bool(step.noise)} | (own(step) if own else set())
            if self.keeps_latents:
                uses.add(("latents", step.number > 0))
            if not uses <= used:
                found.append(step.number)
                used |= uses
        return tuple(found)

    def sweep(
        self,
        predictions: Sequence[Float[Tensor, "d *row"]],
        respond: Callable[[int, Tensor], Tensor] | None = None,
    ) -> list[Float[Tensor, "d *row"]]:
        """Return what the steps return if they are given these predictions, one after another.

        Parameters
        ----------
        predictions
            Those of the first steps; the pass ends after them.
        respond
            Given the number of a step and what the step before it returned, what is added to its prediction.
        """
        sweep = Sweep(self.layout, self.start, predictions, respond, self.known_outputs, self.told_noise)
        if self.bare is not None:
            with self.replay.drawing(self.bare.random):
                self.bare.carry_out(sweep)
        else:
            self.replay.play(sweep)
        if len(sweep.states) != len(predictions):
            raise self.changed()
        return sweep.states

    @functools.cached_property
    def outlets(self) -> dict[tuple[int, int], Any]:
        """The kinds of the calls of which predictions are made, by step and place; none where that is not known.

        Such calls tell what the pipeline makes of a solution. The others, as those of a ControlNet, are known by what
        the calls return to whose arguments their outputs belong.
        """
        if self.feeding is None:
            return {}
        calls = (call for step in self.steps for call in step.calls)
        return {at: call.kind for call in calls if (at := (call.step, call.place)) not in self.feeding}

    @functools.cached_property
    def known_outputs(self) -> list[list[Any]]:
        """An output for every network call of every step."""
        return [[self.template(call) for call in step.calls] for step in self.steps]

    @torch.no_grad()
    def compare(self, call: Call, rows: dict[int, Tensor]) -> None:
        """Compare what a merged batch made of the pipeline's first call with what the call itself returned, once.

        Raises
        ------
        ValueError
            If they differ: the network shares something between the rows of a batch, or between calls.
        """
        if self.first is None or (call.step, call.place) != (0, 0) or len(rows) < self.layout.count:
            return
        if same_tensors(self.first[0], call):  # else it is at another start
            merged = torch.stack([rows[image] for image in range(self.layout.count)], dim=1).flatten(0, 1)
            check_merged(call, merged, first_of(self.first[1]))
            self.first = None

    def draw(self, noise: Float[Tensor, "d M *row"]) -> None:
        """Let the steps draw other noise than the generator's.

        Raises
        ------
        ValueError
            If it has another shape, or if the steps draw none.
        """
        check_noise(noise, self.drawn_noise())
        self.noise = noise

    @property
    def told_noise(self) -> Callable[[int, int, Tensor], Tensor] | None:
        """Given a step, the number of its draw and what was drawn, the noise that it gets; None: what was drawn."""
        return None if self.noise is None else functools.partial(instead, self.noise, self.steps, self.layout)

    def drawn_noise(self) -> Float[Tensor, "d M *row"] | None:
        """Return what the steps draw, in their order; None if they draw nothing."""
        found = drawn(self.steps, self.layout)
        return None if found is None else found.to(self.start.dtype)
