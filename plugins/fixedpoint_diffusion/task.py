"""The task ``ddim-sampling``: sample a chain jointly, and compare with the same chain run step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fixedpoint.chains.chain import ChainProblem
from fixedpoint.chains.serial import Serial
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.problem import Problem
from fixedpoint.core.solution import Solution
from fixedpoint.core.termination import Termination
from fixedpoint.tasks.task import Context, Images, Judgement, SolveTask
from fixedpoint_diffusion.ddim import ddim_problem
from fixedpoint_diffusion.models import MixtureModel, Model, ShapesModel
from fixedpoint_diffusion.noise import draw_noise, row_seeds
from fixedpoint_diffusion.schedule import DDIMSchedule

__all__ = ["DDIMSampling"]


@dataclass(frozen=True)
class DDIMSampling(SolveTask):
    """Samples of a diffusion model by DDIM, all steps of the chain solved as one fixed point."""

    provides = frozenset({"chain"})

    model: ShapesModel | MixtureModel = option(factory=ShapesModel, help="what denoises")
    schedule: DDIMSchedule = option(factory=DDIMSchedule, help="noise schedule, as diffusers' DDIMScheduler has it")
    num_inference_steps: int = option(50, ge=1, help="N, the number of steps of the chain")
    eta: float = option(0.0, ge=0.0, le=1.0, help="0: deterministic DDIM; 1: ancestral sampling")
    batch: int = option(16, ge=1, help="number of samples")
    dtype: Literal["float32", "float64"] = option("float32", help="of the states")
    device: str = option("cpu", help="of the states")
    max_batch: int | None = option(1024, ge=1, help="evaluate the model at most at this many states at once")

    def problem(self, seed: int) -> Problem:
        model: Model = self.model
        dtype = getattr(torch, self.dtype)
        steps = self.num_inference_steps if self.eta > 0 else 0
        x_T, noise = draw_noise(
            row_seeds(seed, self.batch), model.event_shape, steps, dtype=dtype, device=torch.device(self.device)
        )
        return ddim_problem(
            model.denoiser(self.schedule),
            self.schedule,
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

    def _images(self, samples: Tensor) -> Images | None:
        if not self.model.is_image:
            return None
        return Images(samples[:, 0].cpu().float().numpy())


def _serially(problem: ChainProblem) -> Solution:
    return Serial().solve(Evaluator(problem), problem.initial(), Termination())


def _last(solution: Solution) -> Tensor:
    samples: Tensor = solution.z[:, -1]
    return samples
