"""The last run of a pipeline, with the samples of a solution: what the user gets, and whether it is what was solved."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint_diffusion.pipelines.calls import Call
from fixedpoint_diffusion.pipelines.evaluation import predictions
from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.passes import Pass, Step, moved

__all__ = ["delivered"]


def delivered(loop: Loop, states: Float[Tensor, "B K *row"], solved: bool) -> tuple[Any, str]:
    """Return what the pipeline returns if its steps return these samples, and what it does otherwise than was solved.

    The networks return what they returned at the latest evaluation of every step, so that the pipeline's own code shows
    what it makes of them. Where that is not known, only the last step gets its prediction: some pipelines make their
    result of it.

    Parameters
    ----------
    loop
        The loop.
    states
        The samples that its steps return.
    solved
        Whether they are a solution from the pipeline's own start.
    """
    dtype = loop.steps[0].sample.dtype
    recorded = torch.is_grad_enabled() and states.requires_grad
    known = not recorded and bool(loop.outlets) and loop.latest.complete(loop.outlets)
    last = loop.latest.prediction(loop.length - 1)
    if recorded:
        rows = torch.arange(loop.layout.count, device=states.device)
        before = states[:, -2] if loop.length > 1 else loop.start
        last = predictions(loop, before, torch.full_like(rows, loop.length - 1), rows)
    own: list[Tensor] = []

    def answer(call: Call) -> Any:
        template = loop.template(call)
        return loop.latest.output(call, template) if known and (call.step, call.place) in loop.outlets else template

    def told(step: Step) -> Tensor:
        if step.number >= loop.length:
            raise loop.changed()
        return loop.layout.samples(states[:, step.number]).to(dtype)

    def prediction(step: Step) -> Tensor:
        own.append(step.prediction)
        if known or last is None or step.number < loop.length - 1:
            return step.prediction
        return loop.layout.samples(last).to(dtype)

    script = Pass(answer, told=told, prediction=prediction, noise=loop.told_noise)
    output = loop.replay.play(script, deliver=True)
    loop.check_counts(script.counts, loop.length)
    if loop.bare is not None and moved(script.steps, told):
        return output, "it changes its samples between two steps, as a callback may do"
    if not known:
        return output, ""
    return output, loop.latest.differing(script.steps, own, told, loop.layout, solved)
