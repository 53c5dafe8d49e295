"""A pipeline with its scheduler and its steps: the problems whose solutions are its samples, and its own pictures."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.solution import Solution
from fixedpoint_diffusion.pipelines.model import PipelineModel
from fixedpoint_diffusion.pipelines.parallel import ParallelPipeline, parallel
from fixedpoint_diffusion.samplers.request import RequestError
from fixedpoint_diffusion.schedules.by_name import SchedulerChoice, own_scheduler
from fixedpoint_diffusion.schedules.timesteps import DEFAULT_STEPS, quadratic_timesteps
from fixedpoint_diffusion.schedules.training import other_than_trained

__all__ = ["PipelineSampler", "is_of_pipeline", "last_samples", "own_loop", "pictures", "pictures_of"]


@dataclass(frozen=True)
class PipelineSampler:
    """A pipeline, and how it is to sample.

    Attributes
    ----------
    model
        The pipeline.
    scheduler
        In place of its own; None: its own.
    steps, timesteps, sigmas, eta
        Arguments of its call, where they are given.
    device
        The device of its networks.
    max_batch
        The largest number of rows in one batch of a network.
    """

    model: PipelineModel
    scheduler: SchedulerChoice | None = None
    steps: int | None = None
    timesteps: tuple[int, ...] | Literal["quadratic"] | None = None
    sigmas: tuple[float, ...] | None = None
    eta: float = 0.0
    device: str = "cpu"
    max_batch: int | None = None

    def check(self) -> None:
        """Check that the pipeline takes what it is to be given.

        Raises
        ------
        RequestError
            If it does not; the message says which option.
        SchedulerError
            If the scheduler cannot be built.
        """
        folder = self.model.folder
        own = folder.scheduler
        if self.scheduler is not None and own is not None:
            why = other_than_trained(self.scheduler.build(own), own_scheduler(own))
            if why:
                raise RequestError("scheduler", why)
        given = {"timesteps": self.timesteps, "sigmas": self.sigmas, "eta": self.eta or None}
        given["num_inference_steps"] = self.steps
        for name, value in given.items():
            if value is not None and name not in folder.parameters:
                raise RequestError(name, f"must be {'0' if name == 'eta' else 'null'}: {folder.name} takes no {name}")
        if self.sigmas is not None and self.timesteps is not None:
            raise RequestError("sigmas", "must be null where timesteps are given")

    @property
    def pipeline(self) -> ParallelPipeline:
        """The pipeline, loaded; that of the last object is kept."""
        return _loaded(self)

    def arguments(self, rows: Sequence[int], seeds: Sequence[int]) -> dict[str, Any]:
        """The arguments of the pipeline's call for some rows; see :meth:`PipelineModel.arguments`."""
        taken = self.model.folder.parameters
        given: dict[str, Any] = {"num_inference_steps": self.steps, "timesteps": self._timesteps(taken)}
        given |= {"sigmas": None if self.sigmas is None else list(self.sigmas), "eta": self.eta or None}
        if "output_type" in taken:
            given["output_type"] = "np"
        given = {name: value for name, value in given.items() if value is not None}
        return {**given, **self.model.arguments(rows, seeds)}

    def problem(self, rows: Sequence[int], seeds: Sequence[int]) -> ChainProblem:
        """The problem whose solution are the samples of some rows.

        Raises
        ------
        FolderError
            If the pipeline cannot be loaded.
        TypeError, ValueError
            If it cannot be solved jointly, or if it refuses its arguments.
        """
        pipeline = self.pipeline
        problem = pipeline.problem(**self.arguments(rows, seeds))
        _makers[problem] = pipeline
        return problem

    def _timesteps(self, taken: Mapping[str, Any]) -> list[int] | None:
        if isinstance(self.timesteps, str):
            config = self.model.folder.scheduler or {}
            steps = DEFAULT_STEPS if self.steps is None else self.steps
            return list(quadratic_timesteps(steps, int(config.get("num_train_timesteps", 1000))))
        return None if self.timesteps is None else list(self.timesteps)


# The pipelines that made the problems.
_makers: weakref.WeakKeyDictionary[ChainProblem, ParallelPipeline] = weakref.WeakKeyDictionary()


@functools.lru_cache(maxsize=1)
def _loaded(sampler: PipelineSampler) -> ParallelPipeline:
    model = sampler.model
    pipe = model.load(sampler.scheduler, sampler.device)
    return parallel(pipe, max_batch=sampler.max_batch, form=model.form)


def is_of_pipeline(problem: Any) -> bool:
    """Whether a problem was made by a :class:`PipelineSampler`."""
    return isinstance(problem, ChainProblem) and problem in _makers


def own_loop(problem: ChainProblem) -> Solution:
    """The solution by the pipeline's own loop."""
    return _makers[problem].serial(problem)


def last_samples(problem: ChainProblem, solution: Solution) -> Float[Tensor, "B *row"]:
    """What the last step returns: latents, or images in ``[-1, 1]``."""
    found: Tensor = _makers[problem].samples(problem, solution)[:, -1]
    return found


def pictures(problem: ChainProblem, solution: Solution) -> Float[NDArray[np.float32], "B H W C"] | None:
    """The pictures that the pipeline's own decoder makes, in ``[0, 1]``; None if its output is something else."""
    return pictures_of(_makers[problem].finish(problem, solution))


def pictures_of(output: Any) -> Float[NDArray[np.float32], "B H W C"] | None:
    """The pictures in a pipeline's output, in ``[0, 1]``; None if it contains something else."""
    images = getattr(output, "images", None)
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[-1] not in (1, 3):
        return None
    return images.astype(np.float32)
