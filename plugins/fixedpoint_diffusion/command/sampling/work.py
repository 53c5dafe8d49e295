"""Samples a job in batches, jointly, and by the pipeline's own loop if it is to be compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

import fixedpoint
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.registry import CommandError
from fixedpoint_diffusion.command.sampling.request import Entry, SampleJob
from fixedpoint_diffusion.models.folder import FolderError
from fixedpoint_diffusion.pipelines.layout import Layout
from fixedpoint_diffusion.pipelines.parallel import ParallelPipeline, parallel
from fixedpoint_diffusion.pipelines.sampler import pictures_of

__all__ = ["Batch", "Row", "sampled"]


@dataclass(frozen=True)
class Row:
    """The result for one image; all numbers are on the host.

    Attributes
    ----------
    entry
        The image that was asked for.
    status, sentence
        Status of the solve, and what it means.
    rounds
        Rounds of its batch: what had to wait for one another.
    evaluations
        Evaluations of this image.
    error
        The relative error that the solver states.
    difference
        Relative difference of the samples, images or latents, to those of the pipeline's own loop; None if that was not
        run.
    levels
        The largest difference of a pixel to the pipeline's own picture, in grey levels of 255.
    """

    entry: Entry
    status: str
    sentence: str
    rounds: int
    evaluations: int
    error: float
    difference: float | None = None
    levels: float | None = None

    @property
    def ok(self) -> bool:
        """Whether it was sampled within the tolerance."""
        return self.status == "converged"


@dataclass(frozen=True)
class Batch:
    """A batch that is done.

    Attributes
    ----------
    rows
        A result for every image.
    pictures
        Shape ``(B, H, W, C)``, in ``[0, 1]``.
    steps
        The number of the scheduler's steps.
    seconds
        What the whole call took, text encoder and decoder included.
    serial_seconds
        What the pipeline's own call took; None if it was not run.
    plan
        How the solver planned to go, in a sentence; empty without a plan.
    """

    rows: tuple[Row, ...]
    pictures: Float[NDArray[np.float32], "B H W C"]
    steps: int
    seconds: float
    serial_seconds: float | None
    plan: str


def sampled(
    job: SampleJob, entries: Sequence[Entry], told: Callable[[Progress], None] | None = None
) -> Iterator[Batch]:
    """Sample some images of a job, one batch at a time.

    Raises
    ------
    CommandError
        If the pipeline cannot be loaded or sampled, or if memory runs out.
    """
    for at in range(0, len(entries), job.batch):
        part = entries[at : at + job.batch]
        try:
            with torch.no_grad():
                yield _batch(job, part, told)
        except torch.cuda.OutOfMemoryError:
            said = f"{job.sampler.device} has not enough memory for {len(part)} images at once; take a smaller --batch"
            raise CommandError(said, status=1) from None
        except (FolderError, TypeError, ValueError) as error:
            hint = "" if job.solver == "serial" or isinstance(error, FolderError) else _HINT
            raise CommandError(f"{job.sampler.model.path}: {' '.join(str(error).split())}{hint}") from error


_HINT = "; --solver serial runs the pipeline's own loop"


def _batch(job: SampleJob, entries: Sequence[Entry], told: Callable[[Progress], None] | None) -> Batch:
    pipeline = job.sampler.pipeline  # loaded before the clock starts
    began = _now(job)
    samples, solution, output = _solved(job, pipeline, entries, told)
    seconds, pictures = _now(job) - began, pictures_of(output)
    if pictures is None:
        raise ValueError(f"{job.sampler.model.folder.name} returns something else than pictures")
    own, serial_seconds = None, None
    if job.beside_serial:
        began = _now(job)
        own_samples, _, own_output = _own(job, pipeline, entries)
        serial_seconds, own_pictures = _now(job) - began, pictures_of(own_output)
        assert own_pictures is not None
        own = (own_samples, own_pictures)
    return Batch(
        tuple(_rows(entries, solution, samples, pictures, own)),
        pictures,
        solution.layout.unpack(solution.state).shape[1],
        seconds,
        serial_seconds,
        str(solution.extras.get("plan") or ""),
    )


def _solved(
    job: SampleJob, pipeline: ParallelPipeline, entries: Sequence[Entry], told: Callable[[Progress], None] | None
) -> tuple[Tensor, Solution, Any]:
    """The last samples, the solution, and what the pipeline returns."""
    if job.solver == "serial":
        return _own(job, pipeline, entries)
    problem = pipeline.problem(**_arguments(job, entries))
    solution = fixedpoint.solve(problem, solver=job.solver, rtol=job.rtol, on_round=told)
    return pipeline.samples(problem, solution)[:, -1], solution, pipeline.finish(problem, solution)


def _own(job: SampleJob, pipeline: ParallelPipeline, entries: Sequence[Entry]) -> tuple[Tensor, Solution, Any]:
    """The same of the pipeline's own loop."""
    own = parallel(pipeline.pipe, solver="serial")
    output = own(**_arguments(job, entries))
    assert own.solution is not None
    last: Tensor = own.solution.z[:, -1]
    return Layout(len(entries), len(last) // len(entries)).rows(last), own.solution, output


def _arguments(job: SampleJob, entries: Sequence[Entry]) -> dict[str, Any]:
    return job.sampler.arguments([entry.condition for entry in entries], [entry.seed for entry in entries])


def _rows(
    entries: Sequence[Entry],
    solution: Solution,
    samples: Tensor,
    pictures: NDArray[np.float32],
    own: tuple[Tensor, NDArray[np.float32]] | None,
) -> Iterator[Row]:
    errors = solution.relative_error
    for place, entry in enumerate(entries):
        difference = levels = None
        if own is not None:
            one, other = (each[place].double().flatten() for each in (samples, own[0]))
            difference = float((one - other).norm() / other.norm())
            levels = 255 * float(np.abs(pictures[place] - own[1][place]).max())
        yield Row(
            entry,
            solution.status[place].label,
            solution.notes.get(place, solution.status[place].sentence),
            solution.counts.rounds,
            int(solution.evaluations[place]),
            float(errors[place]),
            difference,
            levels,
        )


def _now(job: SampleJob) -> float:
    """The time, once the device has done its work."""
    if torch.device(job.sampler.device).type == "cuda":
        torch.cuda.synchronize(job.sampler.device)
    return time.perf_counter()
