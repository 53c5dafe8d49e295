"""``parallel``: a user's pipeline, sampled in parallel rounds by its own call.

sampler = parallel(pipe, rtol=1e-3)
images = sampler("a cat", num_inference_steps=50, generator=generator).images
sampler.solution                              status, rounds and counts of every image
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint import api
from fixedpoint.chains.chain import Chain, PredictionChain
from fixedpoint.chains.inversion.invert import InversionProgress
from fixedpoint.chains.inversion.methods import Inverter
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint_diffusion.pipelines.calls import Call
from fixedpoint_diffusion.pipelines.chains import FORMS, Form, Known, formed
from fixedpoint_diffusion.pipelines.delivery import delivered
from fixedpoint_diffusion.pipelines.inversion import InvertOptions, PipelineInversion, invert_call
from fixedpoint_diffusion.pipelines.layout import Layout
from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.passes import Pass
from fixedpoint_diffusion.pipelines.probe import examine
from fixedpoint_diffusion.pipelines.refusals import (
    check_arguments,
    check_is_pipeline,
    check_options,
    check_output,
    check_parts,
)
from fixedpoint_diffusion.pipelines.replay import Replay, turn

__all__ = ["ParallelPipeline", "parallel"]


def parallel(
    pipe: Any,
    *,
    rtol: float = 1e-3,
    solver: str | Mapping[str, Any] | Solver = "auto",
    gradient: str | Mapping[str, Any] | GradientEstimator | None = None,
    max_batch: int | None = None,
    form: Form | None = None,
) -> ParallelPipeline:
    """A pipeline of diffusers whose steps are solved as one joint fixed point.

    The result is called like the pipeline and returns what the pipeline returns. Its networks evaluate many steps in
    one batch. Nothing is copied, and the pipeline is not changed; while the result is called, other objects stand in
    for the pipeline's parts, and afterwards it is as after its own call.

    Parameters
    ----------
    pipe
        The pipeline, with any scheduler, adapters and callbacks.
    rtol
        The largest relative error of any state, in ``(0, 1)``; see ``fixedpoint.solve``.
    solver
        As for ``fixedpoint.solve``. ``"auto"`` solves jointly or step by step, whichever it expects to be faster on
        this machine. ``"serial"`` runs the pipeline's own loop, with the same bits.
    gradient
        How autograd differentiates the samples, as for ``fixedpoint.solve``: ``"chain-adjoint"`` in most cases. None:
        the pipeline runs without gradients, as its own call does.
    max_batch
        The largest number of rows in one batch of a network, at least 1; guidance takes two rows for an image. Default:
        what is fastest on a CPU, and what half of the free memory of a GPU holds.
    form
        What is taken for known of the pipeline's loop. ``"affine"``: an affine scheduler and plain guidance, so that no
        code of the pipeline runs in a round; ``"tables"``: an affine scheduler; ``"steps"``: every step depends on the
        sample before it alone; ``"predictions"``: nothing. Default: the first of these that holds, with predictions
        before steps unless ``gradient`` is given.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or if the pipeline cannot be replayed; the message names what is in the way.
    """
    check_is_pipeline(pipe)
    check_options(rtol, max_batch)
    if form is not None and form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    return ParallelPipeline(pipe, rtol, solver, gradient, max_batch, form)


class ParallelPipeline:
    """What :func:`parallel` returns.

    Attributes
    ----------
    pipe
        The pipeline.
    solution
        The solution of the last call: a status for every image, rounds, counts and plan; None before the first call.
    form
        The form of the last joint call, see :meth:`form_of`; None before it.
    """

    def __init__(
        self,
        pipe: Any,
        rtol: float,
        solver: str | Mapping[str, Any] | Solver,
        gradient: str | Mapping[str, Any] | GradientEstimator | None,
        max_batch: int | None,
        form: Form | None,
    ) -> None:
        self.pipe, self.solution, self.form = pipe, None, None
        self._rtol, self._solver, self._gradient, self._most, self._form = rtol, solver, gradient, max_batch, form
        # By the chain, which problems with another start or batch size share.
        self._known: weakref.WeakKeyDictionary[Chain | PredictionChain, Known] = weakref.WeakKeyDictionary()

    solution: Solution | None
    form: Form | None

    def __call__(self, *args: Any, noise: Float[Tensor, "B M *event"] | None = None, **kwargs: Any) -> Any:
        """Call the pipeline, with its own arguments, and return what it returns.

        Parameters
        ----------
        *args, **kwargs
            The arguments of the pipeline's ``__call__``.
        noise
            What the scheduler's steps draw, in place of the generator's numbers: ``M`` draws for every sample.

        Raises
        ------
        TypeError, ValueError
            If the arguments are not those of the pipeline, or if its loop cannot be solved jointly.

        Warns
        -----
        UserWarning
            If an image was not solved to the tolerance.
        """
        with self._grad_mode():
            if self._solver == "serial" and self._gradient is None and noise is None:
                return self._serial(args, kwargs)
            if torch.is_grad_enabled():
                check_output(inspect.unwrap(type(self.pipe).__call__), self.pipe, args, kwargs)
            problem = self.problem(*args, noise=noise, **kwargs)
            with self._bar(problem) as on_round:
                solution = api.solve(
                    problem, solver=self._solver, gradient=self._gradient, rtol=self._rtol, on_round=on_round
                )
            self.solution, self.form = solution, self.form_of(problem)
            if not all(solution.converged):
                warnings.warn(f"{type(self.pipe).__name__}: {solution.message}", stacklevel=2)
            return self.finish(problem, solution)

    def problem(self, *args: Any, noise: Float[Tensor, "B M *event"] | None = None, **kwargs: Any) -> ChainProblem:
        """The joint fixed point of a call, for ``fixedpoint.solve``; arguments as for :meth:`__call__`.

        ``solution.samples`` are the samples that the scheduler's steps return. :meth:`finish` makes the pipeline's
        output of a solution.
        """
        replay = self._replay(args, kwargs)
        examined = examine(replay, self._most)
        if noise is not None:
            examined.loop.draw(noise)
        made = formed(examined, self._form, opaque=self._gradient is not None)
        self._known[made.problem.chain] = made.known
        return made.problem

    def finish(self, problem: ChainProblem, solution: Solution) -> Any:
        """Return what the pipeline returns, from a solution of a problem that this object made.

        The pipeline's callbacks see the states of the solution, and its decoder runs.
        """
        made = self._made(problem)
        solved = bool(solution.converged.all()) and made.begins(problem.x0)
        return self._delivered(made, made.samples(solution.z), solved)

    def _delivered(self, made: Known, states: Float[Tensor, "B K *row"], solved: bool = False) -> Any:
        """Return what the pipeline returns if its steps return these samples."""
        output, otherwise = delivered(made.loop, states, solved)
        if otherwise:
            warnings.warn(
                f"{type(self.pipe).__name__}'s own code does otherwise with the solution than with random outputs of "
                f"its network: {otherwise}. What is returned is not what its own call returns; take solver='serial'",
                stacklevel=3,
            )
        return output

    def invert(
        self,
        images: Any,
        /,
        *args: Any,
        input_type: Literal["image", "latent"] | None = None,
        noise: Float[Tensor, "B M *event"] | None = None,
        method: Inverter | None = None,
        clipping: Literal["refuse", "ignore"] = "refuse",
        tolerance: float = 1e-3,
        on_round: Callable[[InversionProgress], None] | None = None,
        **kwargs: Any,
    ) -> PipelineInversion:
        """Find the latents from which a call of the pipeline makes given images.

        With the same call and another prompt, ``latents=inversion.latents`` gives the images edited.

        Parameters
        ----------
        images
            One image for every one that the call makes: PIL images, numpy arrays or tensors with pixels in [0, 1], as
            the pipelines of diffusers take and return them; the pipeline's autoencoder encodes them. A tensor of the
            shape that ``output_type="latent"`` returns holds samples, which are not encoded.
        *args, **kwargs
            The arguments of the pipeline's ``__call__``: prompt, guidance, size, number of steps; no ``latents``.
        input_type
            Whether ``images`` are images or samples; default: what their shape says, and images where a pipeline has no
            autoencoder. Samples are pixels in [-1, 1] there.
        noise
            As for :meth:`__call__`. A scheduler that adds noise can be inverted with this, or with the numbers of a
            ``generator`` in the call.
        method
            The method of inversion; default: ``JointInversion(clean_rounds=60, rescue=True)``.
        clipping
            What to do if the scheduler clips or thresholds, in which case there is no inverse. ``"refuse"`` raises a
            ``ValueError``; ``"ignore"`` inverts the chain without clipping, and judges the result by that chain.
        tolerance
            The rms of ``reconstruction - target``, in units of the pipeline's samples, up to which an image counts as
            inverted; positive.
        on_round
            Called after every round.

        Returns
        -------
        PipelineInversion
            The latents, and for every image the round trip and a status.

        Raises
        ------
        TypeError, ValueError
            If an argument is not as described; before any work also for a pipeline that takes no ``latents``, and for a
            scheduler whose start an image does not determine: one with a memory, one that replaces the noise at every
            step, and one that adds unknown noise. The message says which scheduler to take.
        """
        options = InvertOptions(input_type, noise, method, clipping, tolerance, on_round)

        return invert_call(
            self._replay(args, kwargs), images, options, self._most, self._form, Loop.draw, self._delivered
        )

    def form_of(self, problem: ChainProblem) -> Form:
        """Which form a problem of this object has: ``"affine"``, ``"tables"``, ``"steps"`` or ``"predictions"``."""
        return self._made(problem).form

    def _made(self, problem: ChainProblem) -> Known:
        made = self._known.get(problem.chain)
        if made is None:
            raise ValueError("the problem was not made by the method problem of this object")
        return made

    def serial(self, problem: ChainProblem) -> Solution:
        """Return the states of the pipeline's own loop, for a problem that this object made.

        The loop runs with the pipeline's own network calls, without its decoder. The solution is that of the problem:
        :meth:`samples` and :meth:`finish` take it.
        """
        made = self._made(problem)
        loop, script = made.loop, Pass(Call.run, noise=made.loop.told_noise, last=made.loop.length - 1)
        loop.replay.play(script)
        found = [loop.layout.rows(step.next) for step in script.steps if step.next is not None]
        rows = torch.arange(loop.layout.count, device=loop.start.device)
        for step in script.steps:
            prediction = loop.layout.rows(step.prediction)
            loop.latest.note(torch.full_like(rows, step.number), rows, prediction)
        states = torch.stack(found, dim=1).to(loop.start.dtype)
        return api.solve(ChainProblem(_Played(made.states(states)), loop.start), solver="serial")

    def samples(self, problem: ChainProblem, solution: Solution) -> Float[Tensor, "B K *row"]:
        """Return the samples after each step of the scheduler, of a solution of a problem that this object made."""
        return self._made(problem).samples(solution.z)

    def _replay(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Replay:
        with turn(self.pipe):
            check_parts(self.pipe)
        replay = Replay(self.pipe, args, kwargs)
        check_arguments(replay.call, self.pipe, args, kwargs)
        return replay

    def _serial(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the pipeline's own loop, and note its states."""
        script = Pass(Call.run)
        output = self._replay(args, kwargs).play(script, deliver=True, bar=True)
        layout = _layout(script.steps[0].sample, output)
        states = torch.stack([layout.rows(step.next) for step in script.steps if step.next is not None], dim=1)
        played = ChainProblem(_Played(states), layout.rows(script.steps[0].sample))
        self.solution = api.solve(played, solver="serial")
        return output

    def _grad_mode(self) -> contextlib.AbstractContextManager[Any]:
        return torch.no_grad() if self._gradient is None else contextlib.nullcontext()

    def _progress_bar(self, problem: ChainProblem) -> Any:
        """Return the pipeline's own progress bar; None if its loop shows none."""
        return self.pipe.progress_bar(total=problem.length) if self._made(problem).loop.replay.shows else None

    @contextlib.contextmanager
    def _bar(self, problem: ChainProblem) -> Any:
        """Shows the pipeline's own progress bar, a round at a time."""
        shown = self._progress_bar(problem)
        if shown is None:
            yield None
            return
        with shown as bar:

            def on_round(progress: Progress) -> None:
                bar.update(1)
                bar.set_postfix(error=f"{float(np.max(progress.relative_error)):.1e}", refresh=False)

            yield on_round


def _layout(samples: Tensor, output: Any) -> Layout:
    """Return how samples are images, as many as the pipeline returned: some guide by a doubled batch of samples."""
    if isinstance(output, (tuple, list)) or hasattr(output, "to_tuple"):
        output = next(iter(output if isinstance(output, (tuple, list)) else output.to_tuple()), None)
    alike = isinstance(output, (Tensor, np.ndarray, list)) and getattr(output, "ndim", 1) > 0
    alike = alike and len(output) > 0 and len(samples) % len(output) == 0
    count = len(output) if alike else len(samples)
    return Layout(count, len(samples) // count)


class _Played(Chain):
    """A chain whose states are known."""

    def __init__(self, states: Float[Tensor, "B K *event"]) -> None:
        self.states, self.length = states, states.shape[1]

    def step(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        return self.states[row, index]
