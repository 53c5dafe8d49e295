"""Sweeps through a loop: the states that follow from predictions, by the pipeline's code or the scheduler alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint_diffusion.pipelines.layout import Layout
from fixedpoint_diffusion.pipelines.passes import Step, previous_of, with_previous
from fixedpoint_diffusion.pipelines.randomness import Noise, RandomStates
from fixedpoint_diffusion.pipelines.stand_ins import LoopEnded, Script, Stage, StepCall, cloned, copied

__all__ = ["BareSteps", "Sweep"]


class Sweep(Script):
    """Goes through the loop with predictions that are known; :attr:`states` are what the steps return.

    Parameters
    ----------
    layout
        How samples are rows.
    start
        Shape ``(d, *row)``: the state before the first step.
    predictions
        Those of the first steps; the sweep ends after them.
    respond
        Given the number of a step and the state before it, what is added to its prediction; None: nothing.
    outputs
        Any outputs of the network calls of every step: what the pipeline makes of them is not used.
    noise
        As for ``Pass``.
    """

    def __init__(
        self,
        layout: Layout,
        start: Float[Tensor, "d *row"],
        predictions: Sequence[Float[Tensor, "d *row"]],
        respond: Callable[[int, Tensor], Tensor] | None,
        outputs: Sequence[Sequence[Any]],
        noise: Callable[[int, int, Tensor], Tensor] | None,
    ) -> None:
        self.layout, self.before, self.predictions, self.respond = layout, start, predictions, respond
        self.outputs, self.noise = outputs, noise
        self.states: list[Tensor] = []
        self._place = 0

    def stage(self, length: int | None) -> Stage:
        if not self.states:
            return "before"
        return "within" if length is None or len(self.states) < length else "after"

    def network(self, name: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._place += 1
        if len(self.states) == len(self.outputs) or self._place > len(self.outputs[len(self.states)]):
            raise LoopEnded  # more calls than there should be
        output = self.outputs[len(self.states)][self._place - 1]
        return cloned(output) if self.copies else output

    def step(self, call: StepCall) -> Any:
        self._place = 0
        result = self.taken(call.take)
        if len(self.states) == len(self.predictions):
            raise LoopEnded
        return with_previous(result, previous_of(result).clone()) if self.copies else result

    def taken(self, take: Callable[[Tensor], Any]) -> Any:
        """Take a step with its prediction, and note the state after it."""
        number = len(self.states)
        prediction = self.predictions[number]
        if self.respond is not None and number > 0:
            prediction = prediction + self.respond(number, self.before)
        given, told = self.layout.samples(prediction), self.noise
        if told is None:
            result = take(given)
        else:
            with Noise(lambda place, drawn: told(number, place, drawn)):
                result = take(given)
        self.before = self.layout.rows(previous_of(result)).to(self.before.dtype)
        self.states.append(self.before)
        return result


@dataclass(frozen=True, eq=False)
class BareSteps:
    """The steps of a loop whose samples the pipeline leaves as they are.

    Attributes
    ----------
    scheduler
        The scheduler before its first step; it is copied.
    random
        The states of all generators then.
    sample
        What the first step is given.
    arguments
        The other arguments of every step, but for its prediction.
    """

    scheduler: Any
    random: RandomStates
    sample: Tensor
    arguments: list[dict[str, Any]]

    @classmethod
    def of(cls, scheduler: Any, random: RandomStates, steps: Sequence[Step]) -> BareSteps:
        """Return the steps of an earlier pass."""
        arguments = [dict(step.arguments) for step in steps]
        for each in arguments:
            del each["sample"], each["model_output"]
        return cls(scheduler, random, steps[0].sample, arguments)

    def carry_out(self, sweep: Sweep) -> None:
        """Carry a sweep out."""
        scheduler, sample = copied(self.scheduler), self.sample
        for arguments in self.arguments[: len(sweep.predictions)]:
            given = functools.partial(_step, scheduler, sample, arguments)
            sample = previous_of(sweep.taken(given))


def _step(scheduler: Any, sample: Tensor, arguments: dict[str, Any], prediction: Tensor) -> Any:
    return scheduler.step(model_output=prediction, sample=sample, **arguments)
