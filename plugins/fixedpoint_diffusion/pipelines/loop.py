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
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint_diffusion.pipelines.batches import check_merged, same_tensors
from fixedpoint_diffusion.pipelines.calls import Call, evaluated, merged_groups
from fixedpoint_diffusion.pipelines.latest import Latest
from fixedpoint_diffusion.pipelines.layout import Layout
from fixedpoint_diffusion.pipelines.noise import check_noise, drawn, instead
from fixedpoint_diffusion.pipelines.passes import Pass, Step
from fixedpoint_diffusion.pipelines.replay import Replay
from fixedpoint_diffusion.pipelines.sweep import BareSteps, Sweep
from fixedpoint_diffusion.pipelines.trees import Path, first_of, leaf_at, mapped

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
    skips: bool = False
    most: int | None = None
    scale: float | None = None
    keeps_latents: bool = False
    noise: Float[Tensor, "d M *row"] | None = None
    first: tuple[Call, Any] | None = None
    bare: BareSteps | None = None
    latest: Latest = field(init=False)

    def __post_init__(self) -> None:
        self.latest = Latest(self.length, self.layout.count, self.start.device)

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

    def check_length(self, steps: Sequence[Any], length: int) -> None:
        """Raise an error if a pass took other steps than it had to, or made more or fewer calls before one."""
        pairs = zip(steps, self.steps, strict=False)
        if len(steps) != length or any(isinstance(a, Step) and len(a.calls) != len(b.calls) for a, b in pairs):
            raise self.changed()

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

    def predictions(
        self, x: Float[Tensor, "P *row"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *row"]:
        """Return what the pipeline gives to step ``index`` as ``model_output``, if the step before it returns ``x``."""
        return self._at(x, index, row, lambda step: step.prediction, real=False)

    def nexts(
        self, x: Float[Tensor, "P *row"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *row"]:
        """Return what step ``index`` returns, if the step before it returns ``x``."""
        return self._at(x, index, row, lambda step: step.next, real=True)

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
        sweep = Sweep(self.layout, self.start, predictions, respond, self._known_outputs, self.told_noise)
        if self.bare is not None:
            with self.replay.drawing(self.bare.random):
                self.bare.carry_out(sweep, self.steps)
        else:
            self.replay.play(sweep)
        self.check_length(sweep.states, len(predictions))
        return sweep.states

    @functools.cached_property
    def single_calls(self) -> bool:
        """Whether every step has one network call, all of as many rows."""
        return [len(rows) for rows in {tuple(call.rows for call in step.calls) for step in self.steps}] == [1]

    @functools.cached_property
    def _known_outputs(self) -> list[list[Any]]:
        """An output for every network call of every step."""
        return [[self.template(call) for call in step.calls] for step in self.steps]

    def _at(
        self,
        x: Tensor,
        index: Tensor,
        row: Tensor,
        take: Callable[[Step], Tensor | None],
        real: bool,
    ) -> Tensor:
        pairs = list(zip(index.tolist(), row.tolist(), strict=True))
        found: list[Tensor | None] = [None] * len(pairs)
        left = list(range(len(pairs)))
        while left:
            # A replay has one state for each step and row.
            taken: dict[tuple[int, int], int] = {}
            for number in left:
                taken.setdefault(pairs[number], number)
            left = sorted(set(left) - set(taken.values()))
            for part in self._parts(taken, apart=x.requires_grad and self.keeps_latents):
                for number, value in self._replayed(x, part, take, real):
                    found[number] = value
        return torch.stack([each for each in found if each is not None]).to(x.dtype)

    def _parts(self, taken: dict[tuple[int, int], int], apart: bool) -> list[dict[tuple[int, int], int]]:
        """Return the pairs of each replay: all, or as many as one batch has.

        Where networks wait for others, what those return (the residuals of a ControlNet) is larger than the states, and
        is held for one batch of pairs at a time. With ``apart``, the first step is alone: it is given its state as
        ``latents``, and other steps that use these must see the user's own ones.
        """
        if apart:
            first = {pair: number for pair, number in taken.items() if pair[0] == 0}
            others = {pair: number for pair, number in taken.items() if pair[0] > 0}
            return [part for pairs in (first, others) if pairs for part in self._parts(pairs, apart=False)]
        if not self.levels or self.most is None:
            return [taken]
        rows = max(call.rows for step in self.steps for call in step.calls) // self.layout.count
        ordered, size = sorted(taken), max(self.most // rows, 1)
        return [{pair: taken[pair] for pair in ordered[at : at + size]} for at in range(0, len(ordered), size)]

    def _replayed(
        self, x: Tensor, taken: dict[tuple[int, int], int], take: Callable[[Step], Tensor | None], real: bool
    ) -> list[tuple[int, Tensor]]:
        wanted: dict[int, list[int]] = {}
        for step, row in taken:
            wanted.setdefault(step, []).append(row)
        states, last = self._states(x, taken), max(wanted)
        outputs: dict[tuple[int, int], dict[int, Any]] = {}

        def played(real: bool) -> Pass:
            def answer(call: Call) -> Any:
                return self._joined(call, outputs.get((call.step, call.place)))

            def told(step: Step) -> Tensor | None:
                # What the step returns is kept by the pass; the pipeline goes on from the state that is known.
                return self.layout.samples(states[step.number + 1]) if step.number + 1 < self.length else None

            known = self.steps if self.skips and not real else None
            script = Pass(answer, told=told, noise=self.told_noise, known=known, last=last)
            self.replay.play(script, **(self._started(states[0]) if 0 in wanted else {}))
            self.check_length(script.steps, last + 1)
            return script

        for level in range(1 + max(self.levels.values(), default=0)):
            recorded = played(real=False)
            calls = [
                call
                for step in wanted
                for call in recorded.steps[step].calls
                if self.levels.get((step, call.place), 0) == level
            ]
            self._evaluate(calls, wanted, outputs)
        final = played(real)
        if any((step, call.place) not in outputs for step in wanted for call in final.steps[step].calls):
            raise self.changed()
        following: list[tuple[int, Tensor]] = []
        noted: list[Tensor] = []
        for (step, row), number in taken.items():
            value = take(final.steps[step])
            assert value is not None
            following.append((number, self.layout.rows(value)[row]))
            noted.append(self.layout.rows(final.steps[step].prediction)[row])
        steps, rows = (torch.tensor(part, device=x.device) for part in zip(*taken, strict=True))
        seen = [outputs[step, 0][row] for step, row in taken] if self.single_calls else []
        self.latest.note(steps, rows, torch.stack(noted), torch.stack(list(map(first_of, seen))) if seen else None)
        return following

    def _states(self, x: Tensor, taken: dict[tuple[int, int], int]) -> Tensor:
        """Return a state for every step, those that are not asked for at the start."""
        states = self.start.detach().to(x.dtype).unsqueeze(0).expand(self.length, *self.start.shape)
        steps, rows = (torch.tensor(part, device=x.device) for part in zip(*taken, strict=True))
        return states.index_put((steps, rows), x[torch.tensor(list(taken.values()), device=x.device)])

    def _started(self, start: Tensor) -> dict[str, Any]:
        """Return the argument with which the pipeline begins at a state; nothing if it does so by itself."""
        same = torch.allclose(start, self.start, rtol=1e-5, atol=1e-6)
        if same and (self.scale is None or not start.requires_grad):
            return {}
        if self.scale is None:
            name = type(self.replay.pipe).__name__
            raise ValueError(f"{name} takes no latents to begin with: its start is neither changed nor differentiated")
        return {"latents": self.layout.samples(start) / self.scale}

    def _evaluate(
        self, calls: Sequence[Call], wanted: dict[int, list[int]], outputs: dict[tuple[int, int], dict[int, Any]]
    ) -> None:
        for call in calls:
            self._restore_dtypes(call)
        for group in merged_groups(calls):
            some = [calls[number] for number in group]
            found = evaluated(some, [wanted[call.step] for call in some], self.layout.count, self.most)
            for call, rows in zip(some, found, strict=True):
                outputs[call.step, call.place] = rows
                self.compare(call, {image: first_of(output) for image, output in rows.items()})

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

    def _restore_dtypes(self, call: Call) -> None:
        """Give a network its tensors in the pipeline's dtypes: states are held in a wider one."""

        def change(path: Path, leaf: Any) -> Any:
            dtype = self.dtypes.get((call.network, path))
            wider = isinstance(leaf, Tensor) and leaf.is_floating_point() and dtype is not None
            return leaf.to(dtype) if wider else leaf

        call.arguments = mapped(call.arguments, change)
        call._leaves = None

    def _joined(self, call: Call, rows: dict[int, Any] | None) -> Any:
        """Return the output of a whole call from those of its images; the template's for images that are not known."""
        if call.place >= len(self._known_outputs[call.step]):
            raise self.changed()
        template = self._known_outputs[call.step][call.place]
        if not rows:
            return template
        total, count = call.rows, self.layout.count

        def change(path: Path, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != total:
                return leaf
            parts = [leaf_at(rows[image], path) if image in rows else leaf[image::count] for image in range(count)]
            joined = torch.stack([part.to(leaf.dtype) for part in parts], dim=1)
            return joined.flatten(0, 1)

        return mapped(template, change)

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
