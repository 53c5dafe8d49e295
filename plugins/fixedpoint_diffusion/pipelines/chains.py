"""The chains that a pipeline's loop makes, and which of them fits it.

Four things can be known of a loop: that the scheduler is affine in its inputs and in the outputs of the network, that
the pipeline does nothing else, that every state depends on the one before it alone, and nothing.

    affine        scheduler with tables, network calls without the pipeline's code      no replay in a round
    tables        scheduler with tables, predictions by replay                          two short replays
    steps         no memory: steps by replay                                            two replays
    predictions   anything: predictions by replay, joined by the scheduler's own steps  up to four replays
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fixedpoint.chains.capabilities import HasNoInverse, HasReferenceSlopes, HasRepresentativeSteps
from fixedpoint.chains.chain import Chain, PredictionChain
from fixedpoint.chains.planning.costs import HasCostKey
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.recurrence import Held, Recurrence, Respond
from fixedpoint.core.inference import writes
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.pipelines.affine import Mixed, direct_calls, input_factors, tables_of
from fixedpoint_diffusion.pipelines.evaluation import nexts, predictions
from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.memory import remembers
from fixedpoint_diffusion.pipelines.probe import Examined
from fixedpoint_diffusion.samplers.chains import MultistepChain, SamplerChain
from fixedpoint_diffusion.samplers.recurrence import SamplerTables

__all__ = ["FORMS", "Form", "Formed", "Known", "PipelineDenoiser", "ReplayedPredictions", "ReplayedSteps", "formed"]

Form: TypeAlias = Literal["affine", "tables", "steps", "predictions"]
FORMS: tuple[Form, ...] = ("affine", "tables", "steps", "predictions")


class PipelineDenoiser(Denoiser, HasRepresentativeSteps):
    """What a pipeline predicts, guidance included, as a denoiser whose timesteps are the numbers of the steps.

    Parameters
    ----------
    loop
        The loop.
    factors
        Shape ``(K,)``: what the network's inputs have to be multiplied by to give the pipeline's samples.
    mixed
        How the network is called without the pipeline; None: by replays.
    """

    def __init__(self, loop: Loop, factors: Float[Tensor, " K"], mixed: Mixed | None) -> None:
        self.loop, self.factors, self.mixed, self.rows = loop, factors, mixed, loop.layout.count

    def predict(
        self, x: Float[Tensor, "P *event"], timestep: Shaped[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        index = timestep.long()
        if self.mixed is not None:
            return self.mixed.predictions(x, index, row)
        factors = self.factors.to(x)[index].view(-1, *[1] * (x.ndim - 1))
        return predictions(self.loop, x * factors, index, row)

    def representative_steps(self) -> tuple[int, ...]:
        """Steps that together call every network in every way, with all that the user may have a gradient by."""
        return self.loop.representative_steps(None if self.mixed is None else self.mixed.given)

    def cost_key(self) -> tuple[object, Hashable]:
        """The pipeline, and how it is called."""
        return self.loop.replay.pipe, (self.mixed is None, self.loop.layout)


class ReplayedSteps(Chain, HasCostKey, HasNoInverse, HasReferenceSlopes, HasRepresentativeSteps):
    """A loop without memory as a chain of steps: the states are the samples that the scheduler's steps return.

    Parameters
    ----------
    loop
        The loop.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop, self.length = loop, loop.length

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """Return what the steps return, by two replays."""
        return nexts(self.loop, x, index, row)

    def reference_slopes(self) -> Float[Tensor, " N"]:
        """One: a step is taken to keep a change of its state. What it really does is learned as secants."""
        return torch.ones(self.length, dtype=torch.float64, device="cpu")

    def representative_steps(self) -> tuple[int, ...]:
        """Steps that together call every network in every way."""
        return self.loop.representative_steps()

    def cost_key(self) -> tuple[object, Hashable]:
        """The pipeline."""
        return self.loop.replay.pipe, ("steps", self.loop.layout)

    def no_inverse(self) -> str | None:
        """Why the chain has no inverse: the pipeline begins with no latents of the user's. None if it does."""
        if self.loop.scale is not None:
            return None
        return f"{type(self.loop.replay.pipe).__name__} takes no latents to begin with"


class ReplayedRecurrence(Recurrence):
    """The pipeline's own code between predictions, by replay: the open recurrence.

    Parameters
    ----------
    loop
        The loop.
    """

    slides = False

    def __init__(self, loop: Loop) -> None:
        self.loop, self.history = loop, loop.length
        self._latest: tuple[Tensor, int, Tensor] | None = None

    def next_input(
        self, index: int, inputs: Sequence[Float[Tensor, "B d"]], predictions: Sequence[Float[Tensor, "B d"]]
    ) -> Float[Tensor, "B d"]:
        known = list(reversed(predictions))
        return self.loop.sweep([self._shaped(each) for each in known])[index].flatten(1)

    def values(self, held: Held) -> Float[Tensor, "B p d"]:
        # Asked for several times in a round, with the same predictions.
        version = writes(held.predictions)
        if self._latest is None or self._latest[0] is not held.predictions or self._latest[1] != version:
            found = self.loop.sweep([self._shaped(each) for each in held.predictions.unbind(1)])
            values = torch.stack([each.flatten(1) for each in found], dim=1)
            self._latest = held.predictions, version, values
        return self._latest[2].clone()

    def carried(
        self,
        held: Held,
        defects: Float[Tensor, "B p d"],
        slopes: Float[Tensor, " K"] | None = None,
        respond: Respond | None = None,
        earlier: Float[Tensor, "B g d"] | None = None,
    ) -> Float[Tensor, "B p d"]:
        """Return the changes of a replay whose predictions respond to them; the slopes are zero."""
        if respond is None:
            return defects

        def response(number: int, state: Tensor) -> Tensor:
            # Slot ``n`` is the prediction whose input is state ``n - 1`` of the window.
            change = state.flatten(1) - held.states[:, number - 1]
            return self._shaped(respond(number, change))

        found = self.loop.sweep([self._shaped(each) for each in held.predictions.unbind(1)], response)
        changes = torch.stack([each.flatten(1) for each in found], dim=1) - held.states
        # What has no defect is final or not finite: it is not moved.
        return torch.where(changes.isfinite(), changes, defects)

    def _shaped(self, flat: Float[Tensor, "B d"]) -> Tensor:
        return flat.view(self.loop.start.shape)


class ReplayedPredictions(PredictionChain, HasCostKey):
    """Any loop: the scheduler's ``model_output`` as predictions, joined by the pipeline's own code.

    Parameters
    ----------
    loop
        The loop.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop, self.length = loop, loop.length
        self.recurrence = ReplayedRecurrence(loop)

    def predict(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """Return what the pipeline gives to the scheduler, by two short replays."""
        return predictions(self.loop, x, index, row)

    def reference_slopes(self) -> Float[Tensor, " K"]:
        """Zero: predictions are taken to stay what they are."""
        return torch.zeros(self.length, dtype=torch.float64, device="cpu")

    def cost_key(self) -> tuple[object, Hashable]:
        """The pipeline."""
        return self.loop.replay.pipe, ("predictions", self.loop.layout)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a chain that a loop makes; it does not hold the chain.

    Attributes
    ----------
    form
        Which chain it is.
    loop
        The loop.
    tables
        The tables of the scheduler, for the forms ``affine`` and ``tables``.
    """

    form: Form
    loop: Loop
    tables: SamplerTables | None = None

    def samples(self, z: Float[Tensor, "B K *row"]) -> Float[Tensor, "B K *row"]:
        """Return the pipeline's own samples after each step, of the states of a solution."""
        return z if self.tables is None else z * self._factors(z)

    def states(self, samples: Float[Tensor, "B K *row"]) -> Float[Tensor, "B K *row"]:
        """Return the states of a solution whose samples these are."""
        return samples if self.tables is None else samples / self._factors(samples)

    def begins(self, start: Float[Tensor, "B *row"]) -> bool:
        """Whether a chain begins where the pipeline does."""
        own = self.loop.start if self.tables is None else self.loop.start / float(input_factors(self.tables)[0])
        return own.shape == start.shape and torch.allclose(start.detach(), own.to(start), rtol=1e-3, atol=1e-4)

    def _factors(self, like: Tensor) -> Tensor:
        assert self.tables is not None
        assert self.tables.state_factors is not None
        return self.tables.state_factors.to(like).view(1, -1, *[1] * (like.ndim - 2))


@dataclass(frozen=True, eq=False)
class Formed:
    """A loop as a problem.

    Attributes
    ----------
    problem
        The problem.
    form, loop, tables
        As for :class:`Known`.
    """

    problem: ChainProblem
    form: Form
    loop: Loop
    tables: SamplerTables | None = None

    @property
    def known(self) -> Known:
        """What is known of the problem's chain."""
        return Known(self.form, self.loop, self.tables)

    def samples(self, z: Float[Tensor, "B K *row"]) -> Float[Tensor, "B K *row"]:
        """Return the pipeline's own samples after each step, of the states of a solution."""
        return self.known.samples(z)


def formed(examined: Examined, wanted: Form | None, opaque: bool = False) -> Formed:
    """Return the problem of a loop in the first form that fits it, or in the form that is asked for.

    Predictions need fewer rounds than steps do, since a step contains more than the network (20 steps of Euler's with
    Karras sigmas: 12 against 14). Steps have what is asked for by ``opaque``: gradients by the adjoint
    chain, inversion, and windows.

    Raises
    ------
    ValueError
        If the loop has not the form that is asked for.
    """
    made = _formed(examined, wanted, opaque)
    made.loop.forget()
    return made


def _formed(examined: Examined, wanted: Form | None, opaque: bool) -> Formed:
    loop = examined.loop
    tables = tables_of(examined) if wanted in (None, "affine", "tables") else None
    if tables is not None:
        mixed = direct_calls(examined, tables) if wanted in (None, "affine") else None
        if mixed is not None or wanted != "affine":
            return _of_tables(examined, tables, mixed)
    if wanted in ("affine", "tables"):
        raise ValueError(f"{type(loop.replay.pipe).__name__}'s loop is not {_PLAIN[wanted]}; leave out form={wanted!r}")
    examined.other = ()  # of no further use
    remembered = remembers(examined)
    if remembered and wanted == "steps":
        raise ValueError(
            f"steps of {type(examined.scheduler).__name__} depend on more than the state before them; "
            "leave out form='steps'"
        )
    chain: Chain | PredictionChain
    form: Form
    # Learned variances are outputs that are no predictions of a sample.
    alike = loop.steps[0].prediction.shape == loop.steps[0].sample.shape
    if remembered or wanted == "predictions" or (wanted is None and not opaque and alike):
        _check_shapes(examined)
        chain, form = ReplayedPredictions(loop), "predictions"
    else:
        _check_start(loop)
        chain, form = ReplayedSteps(loop), "steps"
    return Formed(ChainProblem(chain, loop.start), form, loop)


_PLAIN = {
    "affine": "an affine scheduler and plain guidance",
    "tables": "one of a scheduler that is affine, and leaves its samples alone",
}


def _check_start(loop: Loop) -> None:
    """Check that the gradient by the start of a loop, if there is any, is not lost in replays."""
    if loop.start.requires_grad and loop.scale is None:
        raise ValueError(
            f"the start of {type(loop.replay.pipe).__name__} requires a gradient, and replays can begin at given "
            "latents alone, which it does not take; detach what the start is made of"
        )


def _of_tables(examined: Examined, tables: SamplerTables, mixed: Mixed | None) -> Formed:
    loop = examined.loop
    if mixed is None:
        _check_start(loop)
        examined.other = ()
        remembers(examined)  # finds out which calls have to wait
    denoiser = PipelineDenoiser(loop, input_factors(tables), mixed)
    noise = (loop.drawn_noise() if loop.noise is None else loop.noise) if tables.stochastic else None
    made: Any = SamplerChain if tables.history == 1 else MultistepChain
    start = loop.start / float(denoiser.factors[0])
    # Replays evaluate their batches themselves, so that one of them serves a whole round.
    most = None if mixed is None or loop.most is None else max(loop.most // mixed.each, 1)
    problem = ChainProblem(made(denoiser, tables, noise), start, max_batch=most)
    return Formed(problem, "affine" if mixed is not None else "tables", loop, tables)


def _check_shapes(examined: Examined) -> None:
    step = examined.loop.steps[0]
    if step.prediction.shape != step.sample.shape:
        raise ValueError(
            f"{type(examined.scheduler).__name__} is given outputs of shape {tuple(step.prediction.shape)} for samples "
            f"of shape {tuple(step.sample.shape)}, which cannot be unknowns in their place"
        )
