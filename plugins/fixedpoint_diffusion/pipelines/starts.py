"""How a pipeline begins with latents that it is given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.passes import Pass, Step
from fixedpoint_diffusion.pipelines.randomness import RandomStates

__all__ = ["scale_of"]


def scale_of(loop: Loop, passed: Callable[[Tensor], Sequence[Step]]) -> float | None:
    """Return the number by which a pipeline multiplies ``latents``; None if it takes none, or does anything else.

    Parameters
    ----------
    loop
        The loop, without latents of the user's.
    passed
        Goes through the loop from latents, with the outputs of ``loop.steps``.
    """
    if "latents" not in inspect.signature(loop.replay.call).parameters:
        return None
    start = loop.layout.samples(loop.start.detach())
    script = Pass(loop.template, last=0)
    with torch.no_grad():
        loop.replay.play(script, latents=start.to(loop.steps[0].sample.dtype))
    began = script.steps[0].sample.to(start.dtype)
    if began.shape != start.shape:
        return None
    scale = float((began * start).sum() / start.square().sum())
    off = (began - scale * start).abs().max()
    if float(off) > 1e-2 * abs(scale) * float(start.abs().max()):
        return None
    return scale if _begins_with(loop, scale, passed) else None


def _begins_with(loop: Loop, scale: float, passed: Callable[[Tensor], Sequence[Step]]) -> bool:
    """Whether the loop goes the same way if it is given its own latents.

    A pipeline that is given them does not draw them, so that what it draws next is another noise. Its generators are
    moved on (``Replay.given``) where that makes the difference.
    """
    replay, steps = loop.replay, loop.steps
    own = loop.layout.samples(loop.start.detach()) / scale
    for draws in (False, True):
        if draws:
            with replay.drawing(replay.random):
                generator = replay.kwargs.get("generator")
                for each in generator if isinstance(generator, list) else [generator]:
                    shape = (1, *own.shape[1:]) if isinstance(generator, list) else own.shape
                    device = own.device if each is None else each.device
                    torch.randn(shape, generator=each, device=device, dtype=steps[0].sample.dtype)
                replay.given = RandomStates((replay.args, replay.kwargs))
        with torch.no_grad():
            found = passed(own.to(steps[0].sample.dtype))
        if len(found) == len(steps) and all(_nearly(*pair) for pair in zip(steps, found, strict=True)):
            return True
    return False


def _nearly(one: Step, other: Step) -> bool:
    """Whether two steps and the calls before them are the same but for rounding."""
    assert one.next is not None
    assert other.next is not None
    pairs = [(one.next, other.next)]
    for call, its in zip(one.calls, other.calls, strict=True):
        leaves_of = zip(call.leaves, its.leaves, strict=True)
        pairs += [(mine, theirs) for (_, mine), (_, theirs) in leaves_of if isinstance(mine, Tensor)]
    return all(
        mine.shape == theirs.shape and float((mine - theirs).norm()) <= 5e-2 * float(mine.norm())
        for mine, theirs in ((mine.detach().double(), theirs.detach().double()) for mine, theirs in pairs)
    )
