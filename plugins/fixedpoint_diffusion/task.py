"""The task ``ddim-sampling``: samples a chain jointly and compares the samples with those of the serial run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fixedpoint.chains.methods.serial import Serial
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import OptionError, option
from fixedpoint.core.problem import Problem
from fixedpoint.core.solution import Solution
from fixedpoint.core.termination import Termination
from fixedpoint.tasks.forming import HasDrawing
from fixedpoint.tasks.task import Context, HasNotes, Images, Judgement, SolveTask
from fixedpoint_diffusion.models.choices import DiffusersModel, FashionMNISTModel, MixtureModel, Model, ShapesModel
from fixedpoint_diffusion.samplers.noise import draw_noise, row_seeds
from fixedpoint_diffusion.samplers.problem import ddim_problem
from fixedpoint_diffusion.schedules.schedulers import AssignedSchedule, DDIMSchedule
from fixedpoint_diffusion.schedules.timesteps import Route, route_of

__all__ = ["DDIMSampling"]


@dataclass(frozen=True)
class DDIMSampling(SolveTask, HasNotes, HasDrawing):
    """Samples a diffusion model by DDIM, with all steps of the chain solved as one fixed point."""

    provides = frozenset({"chain", "coarse", "jumps", "extension", "coefficients", "gaussian-slopes"})

    model: FashionMNISTModel | DiffusersModel | ShapesModel | MixtureModel = option(
        factory=ShapesModel, help="the denoising model"
    )
    schedule: DDIMSchedule | None = option(
        None, help="noise schedule, as of diffusers' DDIMScheduler; default: that of the model's training"
    )
    num_inference_steps: int | None = option(
        None, ge=1, help="N, the number of steps of the chain; default: as many as timesteps has, else 50"
    )
    timesteps: tuple[int, ...] | Literal["quadratic"] | None = option(
        None,
        help="the timesteps, from noise to image, or quadratic: each step leads to the next; default: N in the "
        "schedule's spacing",
    )
    eta: float = option(0.0, ge=0.0, le=1.0, help="0: deterministic DDIM; 1: ancestral sampling")
    batch: int = option(16, ge=1, help="number of samples")
    dtype: Literal["float32", "float64"] = option("float32", help="dtype of the states")
    device: str = option("cpu", help="device of the states")
    max_batch: int | None = option(
        None, ge=1, help="largest number of states per call of the model; default: the fastest"
    )

    @property
    def chain_schedule(self) -> DDIMSchedule:
        """The option ``schedule`` if it is set, else the model's own schedule, else the default of diffusers."""
        return self.schedule or self.model.schedule_and_notes()[0] or DDIMSchedule()

    @property
    def route(self) -> Route:
        """The timesteps of the chain."""
        return route_of(self.chain_schedule, self.num_inference_steps, self.timesteps)

    def notes(self) -> tuple[str, ...]:
        """Sentences on what differs from the model's folder or from the requested number of steps."""
        notes = self.model.schedule_and_notes()[1] if self.schedule is None else ()
        route = self.route
        return (*notes, f"timesteps: {route.note}") if route.note else notes

    def check(self) -> None:
        self._check_route()
        own = self.model.schedule_and_notes()[0]
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

    def _check_route(self) -> None:
        if isinstance(self.schedule, AssignedSchedule):
            raise OptionError(
                type(self).__name__,
                "schedule",
                "comes with timesteps of its own; give those to the task, as num_inference_steps or timesteps",
            )
        try:
            route_of(self.chain_schedule, self.num_inference_steps, self.timesteps)
        except ValueError as error:
            which = "num_inference_steps" if self.timesteps is None else "timesteps"
            raise OptionError(type(self).__name__, which, f"cannot be had: {error}") from None

    def problem(self, seed: int) -> Problem:
        model: Model = self.model
        schedule, route = self.chain_schedule, self.route
        dtype = getattr(torch, self.dtype)
        # A deterministic chain (eta = 0) adds no noise, so none is drawn for its steps.
        steps = len(route) if self.eta > 0 else 0
        x_T, noise = draw_noise(
            row_seeds(seed, self.batch), model.event_shape, steps, dtype=dtype, device=torch.device(self.device)
        )
        return ddim_problem(
            model.denoiser(schedule, self.batch, self.device),
            schedule,
            x_T,
            num_inference_steps=len(route) if self.timesteps is None else None,
            timesteps=None if self.timesteps is None else route.timesteps,
            eta=self.eta,
            noise=noise,
            max_batch=self.max_batch,
        )

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
