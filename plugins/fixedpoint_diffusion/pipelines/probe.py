"""Finds out about a pipeline's loop what decides how it can be solved, by replays with arbitrary network outputs.

Nothing is known of any pipeline. What holds is decided by identities between passes: bits that do not change where
something else does, and combinations that hold on random numbers.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fixedpoint_diffusion.pipelines.batches import most_rows, spending
from fixedpoint_diffusion.pipelines.calls import Call
from fixedpoint_diffusion.pipelines.layout import Layout
from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.passes import Pass, Step, previous_of
from fixedpoint_diffusion.pipelines.randomness import RandomStates
from fixedpoint_diffusion.pipelines.refusals import check_keeps_nothing, check_one_shape
from fixedpoint_diffusion.pipelines.replay import Replay
from fixedpoint_diffusion.pipelines.stand_ins import REPLACED, StepCall
from fixedpoint_diffusion.pipelines.starts import scale_of
from fixedpoint_diffusion.pipelines.sweep import BareSteps
from fixedpoint_diffusion.pipelines.trees import NARROW, Path, leaves, mapped, widened

__all__ = ["SEEDS", "Examined", "arbitrary", "examine", "next_of"]

# The seeds of the arbitrary outputs.
SEEDS = (1, 2)


@dataclass(eq=False)
class Examined:
    """A loop and two passes through it, from the same start with different outputs.

    Attributes
    ----------
    loop
        The loop.
    other
        The steps of the second pass.
    scheduler
        A copy of the scheduler as the pipeline set it, before its first step.
    """

    loop: Loop
    other: Sequence[Step]
    scheduler: Any


class _First(Pass):
    """The first pass: it calls each network once, to see what its outputs are like."""

    def __init__(self, replay: Replay) -> None:
        super().__init__(self._first)
        self.replay = replay
        self.random: RandomStates | None = None
        self.templates: dict[Any, Any] = {}
        self.dtypes: dict[tuple[str, Path], torch.dtype] = {}
        self.scheduler: Any = None
        self.schedulers: set[Any] = set()  # those that take steps: some pipelines make copies
        self.first: tuple[Call, Any] | None = None
        self.spent: int | None = None
        self._versions: list[tuple[Tensor, int]] = []
        self.own: dict[Any, Any] = {}

    @property
    def narrow(self) -> bool:
        """Whether a network returns numbers of low precision."""
        outputs = (leaf for output in self.own.values() for _, leaf in leaves(output))
        return any(isinstance(leaf, Tensor) and leaf.dtype in NARROW for leaf in outputs)

    def _first(self, call: Call) -> Any:
        kind = call.kind
        if kind not in self.templates:
            for path, leaf in call.leaves:
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    self.dtypes.setdefault((call.network, path), leaf.dtype)
            with torch.no_grad():
                output, self.spent = spending(call)
            if self.first is None:
                self.first = call, output
            self.own[kind], self.templates[kind] = output, widened(output)
            check_keeps_nothing(call.network, call.module)
        found = arbitrary(self.own[kind], call, SEEDS[0])
        self._note((call.arguments, found))
        return found

    def _note(self, values: Any) -> None:
        tensors = (leaf for _, leaf in leaves(values) if isinstance(leaf, Tensor) and not leaf.is_inference())
        self._versions.extend((leaf, leaf._version) for leaf in tensors)

    @property
    def changed(self) -> bool:
        """Whether the pipeline changed in place what networks and steps were given or returned."""
        return any(leaf._version != version for leaf, version in self._versions)

    def forget(self) -> None:
        """Let go of all steps: several passes at once would be larger than a solve is."""
        self.steps = []
        self._versions = []
        del self.answer  # refers to this object

    def step(self, call: StepCall) -> Any:
        self.schedulers.add(call.scheduler)
        if self.scheduler is None:
            made = copy.copy(call.scheduler)
            for name in REPLACED:
                vars(made).pop(name, None)
            self.scheduler = copy.deepcopy(made)
            self.random = RandomStates((self.replay.args, self.replay.kwargs))
        self._note(call.arguments)
        result = super().step(call)
        self._note(previous_of(result))
        return result


def examine(replay: Replay, most: int | None) -> Examined:
    """Go through a loop twice and return what it is made of.

    Raises
    ------
    ValueError
        If the pipeline takes no step of its scheduler, or if its loop is not the same each time.
    """
    name = type(replay.pipe).__name__
    first = _First(replay)
    replay.play(first)
    if not first.steps:
        raise ValueError(
            f"{name} took no step of the scheduler in its attribute scheduler, so there is nothing to solve; where it "
            "reaches its scheduler through another object, let it use self.scheduler"
        )
    if not any(step.calls for step in first.steps):
        raise ValueError(f"{name} called no network of its own between the steps of its scheduler")
    check_one_shape(name, (step.sample for step in first.steps))
    _name_encoders(replay, first)
    replay.length, replay.copies = len(first.steps), first.changed
    steps = _passed(replay, first.templates, SEEDS[0])
    # The first pass calls networks on what others returned, and so has their dtypes; it copies nothing.
    again = _passed(replay, first.templates, SEEDS[0]) if first.narrow or replay.copies else first.steps
    _check_same(name, again, steps, bool(replay.encoders))
    del again
    first.forget()
    other = _passed(replay, first.templates, SEEDS[1])
    if len(steps) != len(other) or [len(step.calls) for step in steps] != [len(step.calls) for step in other]:
        raise ValueError(
            f"{name} took {len(steps)} steps of its scheduler with some outputs of its network and {len(other)} with "
            "others; a loop whose length depends on the images is not one fixed point"
        )
    count = _independent(replay, first.templates, steps)
    sample = steps[0].sample
    layout = Layout(count, len(sample) // count)
    dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
    loop = Loop(replay, steps, layout, layout.rows(sample).to(dtype), first.templates, first.dtypes, most=most)
    assert first.first is not None
    call, output = first.first
    if call.network not in replay.encoders:
        loop.first = call, output
    if most is None:
        loop.most = most_rows(sample.device, call.rows, first.spent)
    loop.scale = scale_of(loop, lambda latents: _passed(replay, first.templates, SEEDS[0], latents=latents))
    assert first.random is not None
    alone = len(first.schedulers) == 1 and "step" not in vars(replay.scheduler or replay.pipe.scheduler)
    if alone and all(_leaves_samples_alone(each) for each in (steps, other)):
        loop.bare = BareSteps.of(first.scheduler, first.random, steps)
    return Examined(loop, other, first.scheduler)


def _leaves_samples_alone(steps: Sequence[Step]) -> bool:
    """Whether every step is given what the step before it returned."""
    return all(torch.equal(next_of(one), two.sample) for one, two in itertools.pairwise(steps))


def _check_same(name: str, first: Sequence[Step], steps: Sequence[Step], encoders: bool) -> None:
    """Check that two passes with the same outputs and generators are the same."""
    same = len(first) == len(steps) and (
        encoders or all(torch.equal(next_of(one), next_of(two)) for one, two in zip(first, steps, strict=True))
    )
    if not same:
        raise ValueError(
            f"two runs of {name} with the same outputs of its network and the same generators are not the same: its "
            "scheduler's step is no function of what it is given, or a callback keeps count"
        )


def _name_encoders(replay: Replay, first: _First) -> None:
    """Networks that are called before the first step alone are encoders: their outputs are the same each time."""
    later = {call.network for step in first.steps[1:] for call in step.calls}
    early = [call.network for call in first.steps[0].calls if call.network not in later]
    if len(first.steps) > 1 and later:
        replay.encoders.update(early)


def _passed(replay: Replay, templates: dict[Any, Any], seed: int, **instead: Any) -> list[Step]:
    script = Pass(lambda call: arbitrary(templates[call.kind], call, seed), watches=True)
    replay.play(script, **instead)
    return script.steps


def arbitrary(template: Any, call: Call, seed: int, changed: Callable[[Tensor], Tensor] | None = None) -> Any:
    """Return a random output of the size of the template, other rows in another proportion for another seed."""
    number = 1000 * (7 * call.step + call.place) + seed

    def change(_path: Path, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        own = torch.Generator().manual_seed(number)
        random = torch.randn(leaf.shape, generator=own, dtype=leaf.dtype, device="cpu").to(leaf.device)
        if seed == SEEDS[1] and random.ndim > 0:
            # So that no combination of rows is a fixed multiple of another by chance.
            size = torch.linspace(1.0, 2.0, len(random), dtype=random.dtype, device=random.device)
            random = random * size.view(-1, *[1] * (random.ndim - 1))
        size = leaf.square().mean().sqrt()
        found = random * torch.where(size > 0, size, 1.0)
        return found if changed is None else changed(found)

    return mapped(template, change)


def _independent(replay: Replay, templates: dict[Any, Any], steps: Sequence[Step]) -> int:
    """Return the largest number of images that do not depend on one another, image ``i`` owning rows ``i + q d``."""
    samples = len(steps[0].sample)
    common = math.gcd(samples, *(call.rows for step in steps for call in step.calls))
    sizes = (each for each in range(common, 1, -1) if common % each == 0)
    return next((each for each in sizes if _are_independent(replay, templates, steps, each)), 1)


def _are_independent(replay: Replay, templates: dict[Any, Any], steps: Sequence[Step], count: int) -> bool:
    """Whether no image changes with the outputs of another one. Any two of them differ in a bit of their number."""
    for bit in range((count - 1).bit_length()):
        for value in (0, 1):

            def answer(call: Call, bit: int = bit, value: int = value) -> Any:
                def change(own: Tensor) -> Tensor:
                    if len(own) != call.rows:
                        return own
                    grown = _bits(len(own), count, bit, own.device) == value
                    return torch.where(grown.view(-1, *[1] * (own.ndim - 1)), 1.5 * own, own)

                return arbitrary(templates[call.kind], call, SEEDS[0], change)

            script = Pass(answer)
            replay.play(script)
            kept = _bits(len(steps[0].sample), count, bit, steps[0].sample.device) != value
            if len(script.steps) != len(steps) or not all(
                torch.equal(next_of(one)[kept], next_of(two)[kept])
                for one, two in zip(steps, script.steps, strict=True)
            ):
                return False
    return True


def _bits(rows: int, count: int, bit: int, device: torch.device) -> Tensor:
    """Return a bit of the image's number that each row belongs to."""
    return (torch.arange(rows, device=device) % count) >> bit & 1


def next_of(step: Step) -> Tensor:
    """Return what a step that was taken returned."""
    assert step.next is not None
    return step.next
