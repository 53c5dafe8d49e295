"""What the steps of a loop remember, and what its network calls wait for, found by passes with given states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fixedpoint_diffusion.pipelines.calls import Call, equal_calls
from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.passes import Pass, Step, recalls
from fixedpoint_diffusion.pipelines.probe import SEEDS, Examined, arbitrary, next_of

__all__ = ["remembers"]


def remembers(examined: Examined) -> bool:
    """Return whether a step depends on more than the state before it and the outputs of its own networks.

    Also finds out which calls have to wait for others (``loop.levels``), and whether passes may leave out steps.

    Raises
    ------
    ValueError
        If what is given to the scheduler or a network in a step depends on more than the state before it and the
        networks of the step.
    """
    loop = examined.loop
    generator = torch.Generator().manual_seed(3)
    shape = (loop.length, *loop.start.shape)
    size = loop.start.square().mean().sqrt()
    states = torch.randn(shape, generator=generator, dtype=loop.start.dtype, device="cpu").to(loop.start.device) * size
    chosen = torch.rand(loop.length, generator=generator, device="cpu") < 0.5

    def passed(
        states: Tensor,
        moved: Tensor | None = None,
        latents: Tensor | None = None,
        calls: frozenset[tuple[int, int]] = frozenset(),
        **options: Any,
    ) -> list[Step]:
        def answer(call: Call) -> Any:
            grown = (call.step, call.place) in calls
            grown |= moved is not None and bool(moved[min(call.step, loop.length - 1)])
            return arbitrary(loop.template(call), call, SEEDS[0], (lambda own: 1.5 * own) if grown else None)

        def told(step: Step) -> Tensor | None:
            return loop.layout.samples(states[step.number + 1]) if step.number + 1 < loop.length else None

        script = Pass(answer, told=told, noise=loop.told_noise, **options)
        instead: dict[str, Any] = {} if latents is None else {"latents": latents}
        loop.replay.play(script, **instead)
        return script.steps

    base = passed(states)
    loop.skips = _skips(base, lambda: passed(states, known=loop.steps))
    loop.keeps_latents = _keeps_latents(loop, base, passed, states)
    changed = recalled = False
    for some in (chosen, ~chosen):
        outputs = passed(states, some)
        others = states.clone()
        others[1:][some[:-1]] *= 1.5  # the state before the step after: what step ``some + 1`` is given
        moved = passed(others)
        for number, step in enumerate(base):
            if not some[number]:
                changed |= not torch.equal(next_of(step), next_of(outputs[number]))
                recalled |= recalls(step, outputs[number])
            else:
                _note_levels(loop, step, outputs[number])
            if number > 0 and not some[number - 1]:
                changed |= not torch.equal(next_of(step), next_of(moved[number]))
                recalled |= recalls(step, moved[number])
    loop.feeding = _feeding(loop, base, passed, states)
    if recalled:
        raise ValueError(
            f"{type(loop.replay.pipe).__name__} mixes outputs or states of earlier steps into what it gives to its "
            "networks or its scheduler, so that the steps cannot be evaluated together; a guider with a momentum, or a "
            "callback that keeps what it sees, may be the reason"
        )
    return changed


def _keeps_latents(loop: Loop, base: Sequence[Step], passed: Callable[..., list[Step]], states: Tensor) -> bool:
    """Whether steps after the first one change with the argument ``latents``, where they are given the same states."""
    if loop.scale is None:
        return False
    other = loop.layout.samples(loop.start.detach()) * (1.5 / loop.scale)
    moved = passed(states, latents=other.to(loop.steps[0].sample.dtype))
    return any(
        not torch.equal(next_of(one), next_of(two))
        or not all(equal_calls(mine, its) for mine, its in zip(one.calls, two.calls, strict=True))
        for one, two in zip(base[1:], moved[1:], strict=True)
    )


def _skips(base: Sequence[Step], play: Callable[[], list[Step]]) -> bool:
    """Whether a pass without steps makes the same calls."""
    try:
        bare = play()
    except Exception:  # a scheduler of a stranger's may keep its count in another way
        return False
    if len(bare) != len(base):
        return False
    return all(
        equal_calls(one, two)
        for step, its in zip(base, bare, strict=True)
        for one, two in zip(step.calls, its.calls, strict=True)
    )


def _feeding(
    loop: Loop, base: Sequence[Step], passed: Callable[..., list[Step]], states: Tensor
) -> frozenset[tuple[int, int]] | None:
    """Return the calls before those that wait; None if predictions are made of their outputs, too."""
    found = frozenset((step, place) for step, number in loop.levels for place in range(loop.levels[step, number]))
    if not found:
        return found
    changed = passed(states, calls=found)
    same = all(torch.equal(one.prediction, two.prediction) for one, two in zip(base, changed, strict=True))
    return found if same else None


def _note_levels(loop: Loop, base: Step, outputs: Step) -> None:
    """A call whose input changes with the outputs of this step's calls waits for those before it."""
    for call, its in zip(base.calls, outputs.calls, strict=True):
        if not equal_calls(call, its):
            loop.levels[call.step, call.place] = call.place
