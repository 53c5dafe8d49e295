"""The task ``sampling``: samples a model jointly and compares the samples with those of the serial run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.choice import solver_for
from fixedpoint.chains.methods.serial import Serial
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import OptionError, by_options, option
from fixedpoint.core.problem import Problem
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.tasks.forming import HasDrawing
from fixedpoint.tasks.task import Context, HasNotes, Images, Judgement, SolveTask
from fixedpoint_diffusion.models.choices import DiffusersModel, FashionMNISTModel, MixtureModel, Model, ShapesModel
from fixedpoint_diffusion.models.frechet import FrechetDistance
from fixedpoint_diffusion.pipelines.model import PipelineModel
from fixedpoint_diffusion.pipelines.sampler import (
    PipelineSampler,
    is_of_pipeline,
    last_samples,
    own_loop,
    pictures,
)
from fixedpoint_diffusion.samplers.noise import draw_noise, row_seeds
from fixedpoint_diffusion.samplers.request import DDIM_PROVIDES, RequestedSampler, RequestError, requested
from fixedpoint_diffusion.schedules.by_name import SchedulerChoice, SchedulerError, own_scheduler
from fixedpoint_diffusion.schedules.schedulers import AssignedSchedule, DDIMSchedule
from fixedpoint_diffusion.schedules.training import other_than_trained

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Sampling(SolveTask, HasNotes, HasDrawing):
    """Samples a diffusion model, with all steps of the sampler solved as one fixed point.

    The sampler is that of the model's own scheduler, DDIM where it has none, or any other that ``scheduler`` names.
    """

    model: FashionMNISTModel | DiffusersModel | ShapesModel | MixtureModel | PipelineModel = option(
        factory=ShapesModel, help="the denoising model, or a whole pipeline"
    )
    scheduler: str | Mapping[str, Any] | None = option(
        None,
        added=True,
        help="a scheduler of diffusers: its class, or a mapping of its name and settings; what is not given is as in "
        "the model's own scheduler, which is the default",
    )
    schedule: DDIMSchedule | None = option(
        None, help="noise schedule of DDIM, as of diffusers' DDIMScheduler; default: that of the model's training"
    )
    num_inference_steps: int | None = option(
        None,
        ge=1,
        help="N, the number of steps of the chain; default: as many as timesteps or sigmas has, else 50, or a "
        "pipeline's own number",
    )
    timesteps: tuple[int, ...] | Literal["quadratic"] | None = option(
        None,
        help="the timesteps, from noise to image, or quadratic: each step leads to the next; default: N in the "
        "schedule's spacing",
    )
    sigmas: tuple[float, ...] | None = option(
        None, added=True, help="the noise levels, from noise to image, for schedulers that take them"
    )
    eta: float = option(
        0.0, ge=0.0, le=1.0, help="0: deterministic DDIM; 1: ancestral sampling; also of other schedulers that have it"
    )
    batch: int = option(16, ge=1, help="number of samples")
    dtype: Literal["float32", "float64"] = option("float32", help="dtype of the states; those of pipelines are float32")
    device: str = option("cpu", help="device of the states")
    max_batch: int | None = option(
        None, ge=1, help="largest number of states per call of the model; default: the fastest"
    )
    frechet: FrechetDistance | None = option(
        None, added=True, help="also measure the Frechet distance of the samples to a folder of images"
    )

    @by_options(*DDIM_PROVIDES)
    def provides(self) -> frozenset[str]:
        """The abilities of the sampler's chain: a sampler with a memory has no coarse chain, for example.

        Those of a pipeline's chain are known once its loop is; until then it is taken to have what any of them has.
        """
        return _OF_PIPELINES if isinstance(self.model, PipelineModel) else self.sampler.provides

    @property
    def sampler(self) -> RequestedSampler:
        """The sampler that the options describe."""
        return _sampler_of(self)

    @property
    def _asked(self) -> RequestedSampler:
        try:
            return requested(self._scheduler, self.num_inference_steps, self.timesteps, self.sigmas, self.eta)
        except RequestError as error:
            if error.option == "scheduler" and self.scheduler is None:
                own = type(self._scheduler).__name__
                reason = f"has a scheduler of its own, {own}, that {error}; scheduler: names another one"
                raise OptionError(type(self).__name__, "model", reason) from None
            raise OptionError(type(self).__name__, error.option, str(error)) from None

    @cached_property
    def _scheduler(self) -> Any:
        """The schedule of DDIM, or the scheduler of diffusers that steps."""
        model = self._denoising
        own = model.own_scheduler
        if self.schedule is not None:
            return self.schedule
        try:
            if isinstance(self.scheduler, SchedulerChoice):
                return self.scheduler.build(own)
            if own is None or own.get("_class_name") == "DDIMScheduler":
                return model.schedule_and_notes()[0] or DDIMSchedule()
            return own_scheduler(own)
        except SchedulerError as error:
            raise OptionError(type(self).__name__, "scheduler", str(error), error.within) from None

    def notes(self) -> tuple[str, ...]:
        """Sentences on what the model's folder does not specify, or on steps other than those that were asked for."""
        about = () if self.frechet is None else (self.frechet.note(self.batch),)
        if isinstance(self.model, PipelineModel):
            return about
        chosen = self.schedule is not None or self.scheduler is not None
        note = self.sampler.note
        return (*(() if chosen else self.model.notes), *((note,) if note else ()), *about)

    def check(self) -> None:
        if isinstance(self.model, PipelineModel):
            self._check_pipeline()
            return
        if self.frechet is not None and not self.model.is_image:
            raise OptionError(type(self).__name__, "frechet", "must be null: the samples of this model are no pictures")
        self._check_scheduler()
        sampler = self.sampler  # refuses what cannot be had
        if sampler.schedule is None and not self.model.has_own_levels:
            raise OptionError(
                type(self).__name__,
                "scheduler",
                f"must have the noise levels of betas, which this model requires; {type(self._scheduler).__name__} has "
                "none",
            )

    @property
    def _denoising(self) -> Model:
        """The model, which is no pipeline."""
        assert not isinstance(self.model, PipelineModel)
        return self.model

    @property
    def _pipeline(self) -> PipelineSampler:
        """The pipeline with the options of the steps."""
        assert isinstance(self.model, PipelineModel)
        assert self.scheduler is None or isinstance(self.scheduler, SchedulerChoice)
        steps = (self.num_inference_steps, self.timesteps, self.sigmas, self.eta)
        return PipelineSampler(self.model, self.scheduler, *steps, self.device, self.max_batch)

    def _check_pipeline(self) -> None:
        name = type(self).__name__
        if self.schedule is not None:
            raise OptionError(
                name, "schedule", "must be null: a pipeline has a scheduler; scheduler: names another one"
            )
        if self.dtype != "float32":
            raise OptionError(name, "dtype", "must be float32; the dtype of a pipeline's networks is model.dtype")
        try:
            if self.scheduler is not None:
                object.__setattr__(self, "scheduler", SchedulerChoice(self.scheduler))
            self._pipeline.check()
        except SchedulerError as error:
            raise OptionError(name, "scheduler", str(error), error.within) from None
        except RequestError as error:
            raise OptionError(name, error.option, str(error)) from None

    def _check_scheduler(self) -> None:
        """Refuse a scheduler or a schedule that is not one, or that the model was not trained for."""
        name = type(self).__name__
        if isinstance(self.schedule, AssignedSchedule):
            raise OptionError(
                name,
                "schedule",
                "comes with timesteps of its own; give those to the task, as num_inference_steps or timesteps",
            )
        if self.scheduler is None:
            self._check_schedule()
            return
        if self.schedule is not None:
            raise OptionError(name, "schedule", "is that of DDIM; where a scheduler is named, give it the settings")
        try:
            # The dataclass is frozen; as a choice the option can be hashed.
            object.__setattr__(self, "scheduler", SchedulerChoice(self.scheduler))
        except SchedulerError as error:
            raise OptionError(name, "scheduler", str(error), error.within) from None
        own = self._denoising.own_scheduler
        why = "" if own is None else other_than_trained(self._scheduler, own_scheduler(own))
        if why:
            raise OptionError(name, "scheduler", why)

    def _check_schedule(self) -> None:
        own = None if self.schedule is None else self._denoising.own_levels
        if self.schedule is None or own is None:
            return
        if self.schedule.prediction_type != own.prediction_type:
            raise OptionError(
                type(self).__name__,
                "schedule",
                f"must have the model's own prediction_type {own.prediction_type!r}, "
                f"got {self.schedule.prediction_type!r}",
            )
        if not torch.equal(self.schedule.alphas_cumprod, own.alphas_cumprod):
            raise OptionError(
                type(self).__name__,
                "schedule",
                "must have the noise levels the model was trained with (num_train_timesteps, betas)",
            )

    def problem(self, seed: int) -> Problem:
        return self._problem(seed, 0)

    def _problem(self, seed: int, first: int) -> ChainProblem:
        """The problem of a batch of samples, of which ``first`` is the number of the first."""
        seeds = row_seeds(seed, first + self.batch)[first:]
        if isinstance(self.model, PipelineModel):
            return self._pipeline.problem(range(first, first + self.batch), seeds)
        model = self._denoising
        sampler = self.sampler
        # A deterministic sampler adds no noise, so none is drawn for its steps.
        x_T, noise = draw_noise(
            seeds,
            model.event_shape,
            sampler.draws,
            dtype=getattr(torch, self.dtype),
            device=torch.device(self.device),
        )
        # Networks know their own noise levels, so that any schedule will do for them.
        denoiser = model.denoiser(sampler.schedule or DDIMSchedule(), self.batch, self.device)
        return sampler.problem(denoiser, x_T, noise, self.max_batch)

    def solved(
        self, problem: Problem, solver: Solver, context: Context, on_round: Callable[[Progress], None] | None
    ) -> Solution:
        """Return the solution of the problem; the serial one of a pipeline is that of its own loop."""
        if isinstance(problem, ChainProblem) and is_of_pipeline(problem) and isinstance(solver, Serial):
            return own_loop(problem)
        return super().solved(problem, solver, context, on_round)

    def judge(self, problem: Problem, solution: Solution, context: Context) -> Judgement:
        assert isinstance(problem, ChainProblem)  # made by ``problem``
        found = _Samples.of(problem, solution)

        def reference() -> _Samples:
            return found if isinstance(context.solver, Serial) else _Samples.of(problem, _serially(problem))

        # The serial run does not depend on the solver, so it is computed once per task and seed.
        serial = context.once((self, context.seed, "serial"), reference)
        difference = (found.samples - serial.samples).flatten(1).double()
        relative = difference.norm(dim=1) / serial.samples.flatten(1).double().norm(dim=1)
        metrics = {"relative_error": float(relative.amax()), "max_error": float(difference.abs().amax())}
        if found.pictures is not None and serial.pictures is not None:
            metrics["picture_error"] = float(np.abs(found.pictures - serial.pictures).max())
        if self.frechet is not None:
            metrics["frechet_distance"] = self._frechet(found, context)
        return Judgement(metrics=metrics, images=self._images(found), reference=self._images(serial))

    def drawing(self, problem: Problem) -> Callable[[Tensor], Images] | None:
        """A function that draws the last of the states given to it; None if the states are not images."""
        if isinstance(self.model, PipelineModel):
            return None
        if not self.model.is_image:
            return None
        shape = self.model.event_shape
        return lambda latest: _drawn(latest.unflatten(1, (-1, *shape))[:, -1])

    def _frechet(self, found: _Samples, context: Context) -> float:
        """The Frechet distance of these samples, and of further batches where more are asked for."""
        assert self.frechet is not None
        wanted = self.frechet.samples or self.batch
        batches = [self._pixels(found)]
        for first in range(self.batch, wanted, self.batch):
            problem = self._problem(context.seed, first)
            solution = self.solved(problem, solver_for(problem, context.solver), context, None)
            batches.append(self._pixels(_Samples.of(problem, solution)))
        return self.frechet.distance(torch.cat(batches)[:wanted], context.once)

    def _pixels(self, found: _Samples) -> Tensor:
        """The samples as images of shape ``(B, C, H, W)`` in ``[-1, 1]``."""
        if isinstance(self.model, PipelineModel):
            if found.pictures is None:
                raise ValueError(f"frechet requires pictures, and {self.model.folder.name} returns something else")
            return torch.from_numpy(found.pictures).permute(0, 3, 1, 2) * 2 - 1
        return found.samples.cpu().float().clamp(-1, 1)

    def _images(self, found: _Samples) -> Images | None:
        if isinstance(self.model, PipelineModel):
            pixels = found.pictures
            return None if pixels is None else Images(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, 0.0, 1.0)
        return _drawn(found.samples) if self.model.is_image else None


# What the chains of pipelines may have; what one of them lacks is found out by the solve.
_OF_PIPELINES = frozenset({"chain", "coarse", "extension", "gaussian-slopes", "jumps"})


@dataclass(frozen=True)
class _Samples:
    """The samples of a solution, and the pictures that a pipeline makes of them, ``(B, H, W, C)`` in ``[0, 1]``."""

    samples: Tensor
    pictures: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, problem: ChainProblem, solution: Solution) -> _Samples:
        if is_of_pipeline(problem):
            return cls(last_samples(problem, solution), pictures(problem, solution))
        return cls(solution.z[:, -1])


@functools.lru_cache(maxsize=8)
def _sampler_of(task: Sampling) -> RequestedSampler:
    """The sampler of a task, which is built anew for every cell of a run; a scheduler is probed once."""
    return task._asked


def _drawn(samples: Tensor) -> Images:
    """Samples of shape ``(B, C, H, W)`` as pictures: without the channel axis if grey, with the colours last if RGB."""
    pixels = samples.cpu().float().numpy()
    return Images(pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1))


def _serially(problem: ChainProblem) -> Solution:
    """The solution of the serial run, or of a pipeline's own loop."""
    if is_of_pipeline(problem):
        return own_loop(problem)
    return Serial().solve(Evaluator(problem), problem.initial(), Termination())
