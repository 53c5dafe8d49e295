"""Passes through a pipeline's loop: what its networks were asked, what its scheduler was given, and what came of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fixedpoint_diffusion.pipelines.calls import Call, equal_calls
from fixedpoint_diffusion.pipelines.randomness import Noise
from fixedpoint_diffusion.pipelines.stand_ins import LoopEnded, Script, Stage, StepCall, cloned
from fixedpoint_diffusion.pipelines.trees import Path, mapped

__all__ = ["Pass", "Step", "moved", "previous_of", "recalls", "with_previous"]

# Step arguments that differ from step to step and are no settings of the sampler.
_OWN = ("model_output", "timestep", "sample", "generator", "return_dict")


@dataclass(eq=False)
class Step:
    """One step of the scheduler in a pass.

    Attributes
    ----------
    number
        Its number, from 0.
    calls
        The network calls before it, in their order.
    prediction
        ``model_output``, as the pipeline gave it.
    sample
        ``sample``, as the pipeline gave it.
    timestep
        ``timestep``.
    arguments
        All arguments by name.
    result
        What the step returned; None where it was not taken.
    next
        ``prev_sample`` of the result; None where it was not taken.
    noise
        What the step drew.
    """

    number: int
    calls: list[Call]
    prediction: Tensor
    sample: Tensor
    timestep: Any
    arguments: dict[str, Any]
    result: Any = None
    next: Tensor | None = None
    noise: list[Tensor] = field(default_factory=list)

    def forget(self) -> None:
        """Let go of the numbers, of which shapes and dtypes stay known; what was drawn stays."""
        for call in self.calls:
            call.forget()
        self.result = mapped(self.result, _hollow)
        if self.next is not None:
            self.next = previous_of(self.result)
        self.prediction, self.sample = _hollow((), self.prediction), _hollow((), self.sample)
        self.arguments = mapped(self.arguments, _hollow)

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that are settings of the sampler, such as ``eta``."""
        return {name: value for name, value in self.arguments.items() if name not in _OWN}


class Pass(Script):
    """Goes through the loop once, and records its steps.

    Parameters
    ----------
    answer
        Returns the output of a network call.
    told
        Returns the sample that the pipeline gets from a step in place of the step's own; None: that.
    prediction
        Returns what the scheduler gets as ``model_output`` in a step, in place of the pipeline's own; None: that.
    noise
        Returns what step ``j`` gets for its draw ``k``, given both and what was drawn; None: what was drawn.
    watches
        Whether what is drawn is recorded. Watching costs as much as the steps of some schedulers do.
    known
        The steps of an earlier pass, if steps need not be taken: their results tell what kind of object to return.
    last
        The step with which the pass ends; None: it goes through.
    keeps
        Returns what is kept of a step in :attr:`kept`, once it was taken; None: all of it, in :attr:`steps`.
    """

    def __init__(
        self,
        answer: Callable[[Call], Any],
        *,
        told: Callable[[Step], Tensor | None] | None = None,
        prediction: Callable[[Step], Tensor] | None = None,
        noise: Callable[[int, int, Tensor], Tensor] | None = None,
        watches: bool = False,
        known: Sequence[Step] | None = None,
        last: int | None = None,
        keeps: Callable[[Step], Any] | None = None,
    ) -> None:
        self.answer, self.told, self.prediction, self.noise = answer, told, prediction, noise
        self.watches, self.known, self.last, self.keeps = watches or noise is not None, known, last, keeps
        self.steps: list[Step] = []
        self.kept: list[Any] = []
        self.counts: list[int] = []  # of the calls before each step
        self.calls: list[Call] = []  # since the last step
        self._timesteps: Any = None  # all that the scheduler has

    def stage(self, length: int | None) -> Stage:
        if not self.counts:
            return "before"
        if length is not None:
            return "after" if len(self.counts) >= length else "within"
        if self._timesteps is None:
            return "within"
        if not isinstance(self._timesteps, list):
            self._timesteps = torch.as_tensor(self._timesteps).tolist()
        last = self._timesteps[-1]
        if float(self.steps[-1].timestep) != last:
            return "within"
        # Some schedulers take two steps at a timestep.
        taken = sum(float(step.timestep) == last for step in self.steps)
        return "after" if taken >= self._timesteps.count(last) else "within"

    def network(self, name: str, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = cloned((args, kwargs)) if self.copies else (args, kwargs)
        call = Call.of(name, module, len(self.counts), len(self.calls), *given)
        self.calls.append(call)
        output = self.answer(call)
        return cloned(output) if self.copies else output

    def step(self, call: StepCall) -> Any:
        if self.copies:
            call.arguments = cloned(call.arguments)
        number, given = len(self.counts), call.arguments
        step = Step(number, self.calls, given["model_output"], given["sample"], given["timestep"], given)
        if self.prediction is not None:
            step.prediction = self.prediction(step)
        self.counts.append(len(self.calls))
        self.calls, self._timesteps = [], getattr(call.scheduler, "timesteps", None)
        if self.known is not None and number < len(self.known):
            result = self.known[number].result
        else:
            result = step.result = self._taken(call, step)
            step.next = previous_of(result)
        if self.keeps is None:
            self.steps.append(step)
        else:
            self.kept.append(self.keeps(step))
        if number == self.last:
            raise LoopEnded
        if step.result is None:
            _advance(call.scheduler, given["timestep"])
        told = None if self.told is None else self.told(step)
        if told is None and not self.copies:
            return result
        told = previous_of(result) if told is None else told
        return with_previous(result, told.clone() if self.copies else told)

    def _taken(self, call: StepCall, step: Step) -> Any:
        if not self.watches:
            return call.take(step.prediction)
        told = self.noise
        with Noise(None if told is None else lambda place, drawn: told(step.number, place, drawn)) as noise:
            result = call.take(step.prediction)
        step.noise = noise.drawn
        return result


def _hollow(_path: Path, leaf: Any) -> Any:
    """Return a tensor without numbers in place of one with numbers."""
    return torch.empty_like(leaf.detach(), device="meta") if isinstance(leaf, Tensor) else leaf


def moved(steps: Sequence[Step], told: Callable[[Step], Tensor]) -> bool:
    """Whether any step was given another sample than the step before it was told to return."""
    changes = [(two.sample != told(one)).any() for one, two in itertools.pairwise(steps)]
    return bool(torch.stack(changes).any()) if changes else False


def _advance(scheduler: Any, timestep: Any) -> None:
    """Count a step that is not taken: the scale of the next input depends on the scheduler's count."""
    if not hasattr(scheduler, "_step_index"):
        return
    if scheduler._step_index is None:
        scheduler._init_step_index(timestep)
    scheduler._step_index += 1


def recalls(one: Step, other: Step) -> bool:
    """Whether a step's prediction, or what its networks are asked, differs between two passes.

    The outputs are random numbers here, so that a prediction does not show what a network was asked.
    """
    pairs = zip(one.calls, other.calls, strict=True)
    return not torch.equal(one.prediction, other.prediction) or not all(equal_calls(*pair) for pair in pairs)


def previous_of(result: Any) -> Tensor:
    """Return the sample in what a step returned."""
    if isinstance(result, Tensor):
        return result
    found = result.prev_sample if hasattr(result, "prev_sample") else result[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"a scheduler's step must return a tensor, got {type(found).__name__}")
    return found


def with_previous(result: Any, sample: Tensor) -> Any:
    """Return the result of a step with another sample."""
    if isinstance(result, Tensor):
        return sample
    if isinstance(result, tuple) and not hasattr(result, "prev_sample"):
        return (sample, *result[1:])
    return type(result)(**{**dict(result.items()), "prev_sample": sample})
