"""The task ``sampling``: samples a model jointly and compares the samples with those of the serial run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fixedpoint.chains.methods.serial import Serial
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import OptionError, by_options, option
from fixedpoint.core.problem import Problem
from fixedpoint.core.solution import Solution
from fixedpoint.core.termination import Termination
from fixedpoint.tasks.forming import HasDrawing
from fixedpoint.tasks.task import Context, HasNotes, Images, Judgement, SolveTask
from fixedpoint_diffusion.models.choices import DiffusersModel, FashionMNISTModel, MixtureModel, Model, ShapesModel
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

    model: FashionMNISTModel | DiffusersModel | ShapesModel | MixtureModel = option(
        factory=ShapesModel, help="the denoising model"
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
        None, ge=1, help="N, the number of steps of the chain; default: as many as timesteps or sigmas has, else 50"
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
    dtype: Literal["float32", "float64"] = option("float32", help="dtype of the states")
    device: str = option("cpu", help="device of the states")
    max_batch: int | None = option(
        None, ge=1, help="largest number of states per call of the model; default: the fastest"
    )

    @by_options(*DDIM_PROVIDES)
    def provides(self) -> frozenset[str]:
        """The abilities of the sampler's chain: a sampler with a memory has no coarse chain, for example."""
        return self.sampler.provides

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
        own = self.model.own_scheduler
        if self.schedule is not None:
            return self.schedule
        try:
            if isinstance(self.scheduler, SchedulerChoice):
                return self.scheduler.build(own)
            if own is None or own.get("_class_name") == "DDIMScheduler":
                return self.model.schedule_and_notes()[0] or DDIMSchedule()
            return own_scheduler(own)
        except SchedulerError as error:
            raise OptionError(type(self).__name__, "scheduler", str(error), error.within) from None

    def notes(self) -> tuple[str, ...]:
        """Sentences on what the model's folder does not specify, or on steps other than those that were asked for."""
        chosen = self.schedule is not None or self.scheduler is not None
        note = self.sampler.note
        return (*(() if chosen else self.model.notes), *((note,) if note else ()))

    def check(self) -> None:
        self._check_scheduler()
        sampler = self.sampler  # refuses what cannot be had
        if sampler.schedule is None and not self.model.has_own_levels:
            raise OptionError(
                type(self).__name__,
                "scheduler",
                f"must have the noise levels of betas, which this model requires; {type(self._scheduler).__name__} has "
                "none",
            )

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
        own = self.model.own_scheduler
        why = "" if own is None else other_than_trained(self._scheduler, own_scheduler(own))
        if why:
            raise OptionError(name, "scheduler", why)

    def _check_schedule(self) -> None:
        own = None if self.schedule is None else self.model.own_levels
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
        model: Model = self.model
        sampler = self.sampler
        # A deterministic sampler adds no noise, so none is drawn for its steps.
        x_T, noise = draw_noise(
            row_seeds(seed, self.batch),
            model.event_shape,
            sampler.draws,
            dtype=getattr(torch, self.dtype),
            device=torch.device(self.device),
        )
        # Networks know their own noise levels, so that any schedule will do for them.
        denoiser = model.denoiser(sampler.schedule or DDIMSchedule(), self.batch, self.device)
        return sampler.problem(denoiser, x_T, noise, self.max_batch)

    def judge(self, problem: Problem, solution: Solution, context: Context) -> Judgement:
        assert isinstance(problem, ChainProblem)  # made by ``problem``
        samples = _last(solution)
        # The serial run does not depend on the solver, so it is computed once per task and seed.
        serial = context.once((self, context.seed, "serial"), lambda: _last(_serially(problem)))
        difference = (samples - serial).flatten(1).double()
        relative = difference.norm(dim=1) / serial.flatten(1).double().norm(dim=1)
        return Judgement(
            metrics={"relative_error": float(relative.amax()), "max_error": float(difference.abs().amax())},
            images=self._images(samples),
            reference=self._images(serial),
        )

    def drawing(self, problem: Problem) -> Callable[[Tensor], Images] | None:
        """A function that draws the last of the states given to it; None if the samples are not images."""
        if not self.model.is_image:
            return None
        shape = self.model.event_shape
        return lambda latest: _drawn(latest.unflatten(1, (-1, *shape))[:, -1])

    def _images(self, samples: Tensor) -> Images | None:
        return _drawn(samples) if self.model.is_image else None


@functools.lru_cache(maxsize=8)
def _sampler_of(task: Sampling) -> RequestedSampler:
    """The sampler of a task, which is built anew for every cell of a run; a scheduler is probed once."""
    return task._asked


def _drawn(samples: Tensor) -> Images:
    """Samples of shape ``(B, C, H, W)`` as pictures: without the channel axis if grey, with the colours last if RGB."""
    pixels = samples.cpu().float().numpy()
    return Images(pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1))


def _serially(problem: ChainProblem) -> Solution:
    """The solution of the serial run."""
    return Serial().solve(Evaluator(problem), problem.initial(), Termination())


def _last(solution: Solution) -> Tensor:
    """The samples: the last state of every row."""
    samples: Tensor = solution.z[:, -1]
    return samples
