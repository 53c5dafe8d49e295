"""The task ``ddim-sampling``: sample a chain jointly, and compare with the same chain run step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fixedpoint.chains.chain import ChainProblem
from fixedpoint.chains.serial import Serial
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import OptionError, option
from fixedpoint.core.problem import Problem
from fixedpoint.core.solution import Solution
from fixedpoint.core.termination import Termination
from fixedpoint.tasks.task import Context, Images, Judgement, SolveTask
from fixedpoint_diffusion.models import DiffusersModel, FashionMNISTModel, MixtureModel, Model, ShapesModel
from fixedpoint_diffusion.noise import draw_noise, row_seeds
from fixedpoint_diffusion.problem import ddim_problem
from fixedpoint_diffusion.schedule import DDIMSchedule

__all__ = ["DDIMSampling"]


@dataclass(frozen=True)
class DDIMSampling(SolveTask):
    """Samples of a diffusion model by DDIM, all steps of the chain solved as one fixed point."""

    provides = frozenset({"chain", "coarse"})

    model: FashionMNISTModel | DiffusersModel | ShapesModel | MixtureModel = option(
        factory=ShapesModel, help="what denoises"
    )
    schedule: DDIMSchedule | None = option(
        None, help="noise schedule, as diffusers' DDIMScheduler has it; default: the one the model was trained with"
    )
    num_inference_steps: int = option(50, ge=1, help="N, the number of steps of the chain")
    eta: float = option(0.0, ge=0.0, le=1.0, help="0: deterministic DDIM; 1: ancestral sampling")
    batch: int = option(16, ge=1, help="number of samples")
    dtype: Literal["float32", "float64"] = option("float32", help="of the states")
    device: str = option("cpu", help="of the states")
    max_batch: int | None = option(
        None, ge=1, help="evaluate the model at most at this many states at once; default: what is quickest"
    )

    @property
    def chain_schedule(self) -> DDIMSchedule:
        """The schedule asked for, else the model's own, else diffusers' default."""
        return self.schedule or self.model.own_schedule or DDIMSchedule()

    def check(self) -> None:
        own = self.model.own_schedule
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
        schedule = self.chain_schedule
        dtype = getattr(torch, self.dtype)
        steps = self.num_inference_steps if self.eta > 0 else 0
        x_T, noise = draw_noise(
            row_seeds(seed, self.batch), model.event_shape, steps, dtype=dtype, device=torch.device(self.device)
        )
        return ddim_problem(
            model.denoiser(schedule, self.batch, self.device),
            schedule,
            x_T,
            num_inference_steps=self.num_inference_steps,
            eta=self.eta,
            noise=noise,
            max_batch=self.max_batch,
        )

    def judge(self, problem: Problem, solution: Solution, context: Context) -> Judgement:
        assert isinstance(problem, ChainProblem)  # made above
        samples = _last(solution)
        serial = context.once((self, context.seed, "serial"), lambda: _last(_serially(problem)))
        difference = (samples - serial).flatten(1).double()
        relative = difference.norm(dim=1) / serial.flatten(1).double().norm(dim=1)
        return Judgement(
            metrics={"relative_error": float(relative.amax()), "max_error": float(difference.abs().amax())},
            images=self._images(samples),
            reference=self._images(serial),
        )

    def drawing(self, problem: Problem) -> Callable[[Tensor], Images] | None:
        """What draws the last of the states a round has told of; None where samples are no images."""
        if not self.model.is_image:
            return None
        shape = self.model.event_shape
        return lambda latest: _drawn(latest.unflatten(1, (-1, *shape))[:, -1])

    def _images(self, samples: Tensor) -> Images | None:
        return _drawn(samples) if self.model.is_image else None


def _drawn(samples: Tensor) -> Images:
    pixels = samples.cpu().float().numpy()
    return Images(pixels[:, 0] if pixels.shape[1] == 1 else pixels.transpose(0, 2, 3, 1))


def _serially(problem: ChainProblem) -> Solution:
    return Serial().solve(Evaluator(problem), problem.initial(), Termination())


def _last(solution: Solution) -> Tensor:
    samples: Tensor = solution.z[:, -1]
    return samples
