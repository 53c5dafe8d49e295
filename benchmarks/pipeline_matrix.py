"""Pipelines and schedulers: what can be sampled jointly, in how many rounds, and how far the samples are from the own.

    python benchmarks/pipeline_matrix.py [--pipeline sd1 --scheduler ddim] [--steps 20] [--write FILE]

The pipelines are the tiny ones of ``tiny_pipelines``, two images of which the worst counts, relative tolerance 1e-3.
For every pair the script prints the form that is chosen by default, the rounds until the joint solve ends by itself and
the number ``K`` of steps that the scheduler takes, the relative error of the samples from those of the pipeline's own
call, and whether the serial replay has the same bits; or the sentence with which the pair is refused, and by whom.
Beside errors above three tolerances stands what the pipeline's own output moves by when its batch is doubled.

With ``--write`` the table goes into a page, between the lines ``<!-- matrix -->`` and ``<!-- end of matrix -->``.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
from tiny_pipelines import NAMES, arguments, distance, doubled, generators, images_of, pipeline
from torch import Tensor

import fixedpoint
from fixedpoint.chains.joint.solver import joint
from fixedpoint_diffusion import parallel

__all__ = ["FLOWS", "LIMIT", "SCHEDULERS", "Cell", "fits", "measured", "pairs", "scheduler"]

RTOL = 1e-3
LIMIT = 3 * RTOL
STEPS = 20
FLOWS = ("sd3", "flux")
PIXELS = ("ddpm", "ddim")  # without a decoder
BEGIN, END = "<!-- matrix -->", "<!-- end of matrix -->"

_FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
# Name: class of diffusers, its settings for networks that predict noise, those for networks that predict flows; None:
# it is not for such networks.
SCHEDULERS: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any] | None]] = {
    "DDIM": ("DDIMScheduler", {}, None),
    "DDPM": ("DDPMScheduler", {}, None),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}, None),
    "Euler": ("EulerDiscreteScheduler", {}, None),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, None),
    "Heun": ("HeunDiscreteScheduler", {}, None),
    "LCM": ("LCMScheduler", {}, None),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}, _FLOW),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, None),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, None),
    "UniPC": ("UniPCMultistepScheduler", {}, _FLOW),
    "flow Euler": ("FlowMatchEulerDiscreteScheduler", None, {"shift": 3.0}),
    "flow Heun": ("FlowMatchHeunDiscreteScheduler", None, {"shift": 3.0}),
}
# Settings of the pipeline's own scheduler that others take over.
_LEVELS = ("beta_start", "beta_end", "beta_schedule", "prediction_type", "clip_sample")


@dataclass(frozen=True)
class Cell:
    """What became of a pair.

    Attributes
    ----------
    refused
        The sentence with which it was refused; None if it was sampled. What follows has a meaning for these alone.
    by_pipeline
        Whether the pipeline's own call raised it.
    form
        The form that was chosen.
    rounds
        Until the joint solve ended.
    length
        ``K``, the steps of the scheduler.
    converged
        Whether all images were solved.
    error
        Of the joint samples, relative, of the worst image.
    moved
        What the pipeline's own samples move by if its batch is doubled; None if it was not needed.
    serial
        The relative error of the serial replay; 0: the same bits.
    """

    refused: str | None = None
    by_pipeline: bool = False
    form: str = ""
    rounds: int = 0
    length: int = 0
    converged: bool = False
    error: float = 0.0
    moved: float | None = None
    serial: float = 0.0

    @property
    def within(self) -> bool:
        """Whether the joint samples are the pipeline's own, to three tolerances or what a doubled batch changes."""
        return self.converged and self.error <= max(LIMIT, 3 * (self.moved or 0.0))

    def __str__(self) -> str:
        if self.refused is not None:
            return f"{'the pipeline itself: ' if self.by_pipeline else ''}{self.refused}"
        moved = "" if self.moved is None else f" (doubled batch: {self.moved:.0e})"
        same = "same bits" if self.serial == 0 else f"serial {self.serial:.0e}"
        return f"{self.form}, {self.rounds} of {self.length}, {self.error:.0e}{moved}, {same}"


def fits(name: str, key: str) -> bool:
    """Whether a scheduler is for the networks of a pipeline."""
    return SCHEDULERS[key][2 if name in FLOWS else 1] is not None


def pairs() -> list[tuple[str, str]]:
    """All pairs of a pipeline and a scheduler that fits."""
    return [(name, key) for name in NAMES for key in SCHEDULERS if fits(name, key)]


def scheduler(name: str, key: str) -> Any:
    """A scheduler with the noise levels of a pipeline's own."""
    kind, settings, flow = SCHEDULERS[key]
    cls, own = getattr(diffusers, kind), pipeline(name).scheduler.config
    taken = inspect.signature(cls).parameters
    if name in FLOWS:
        # What Flux tells its scheduler depends on the size of the image.
        dynamic = own.use_dynamic_shifting and "use_dynamic_shifting" in taken
        return cls(**(flow or {}), **({"use_dynamic_shifting": True} if dynamic else {}))
    levels = {key: own[key] for key in _LEVELS if key in own and key in taken}
    return cls(**{**levels, **(settings or {})})


def measured(name: str, key: str | None, *, steps: int = STEPS, **given: Any) -> Cell:
    """Sample a pipeline with a scheduler by its own call, in the same way by replay, and jointly.

    Parameters
    ----------
    name
        The pipeline.
    key
        The scheduler; None: the pipeline's own.
    steps
        ``num_inference_steps``.
    given
        Other arguments of the call.
    """
    call = {**arguments(name), "num_inference_steps": steps, **given}

    def made() -> Any:
        return pipeline(name, scheduler=None if key is None else scheduler(name, key))

    try:
        own = _images(made(), call)
    except Exception as error:
        return Cell(refused=f"{type(error).__name__}: {_first_line(error)}".removesuffix(": "), by_pipeline=True)
    sampler, serially = parallel(made(), rtol=RTOL), parallel(made(), solver="serial")
    try:
        torch.manual_seed(0)
        with torch.no_grad():
            problem = sampler.problem(**call, generator=generators())
            solution = fixedpoint.solve(problem, solver=joint(problem), rtol=RTOL)
            found = images_of(sampler.finish(problem, solution))
    except (TypeError, ValueError) as refusal:
        return Cell(refused=_first_line(refusal))
    serial = distance(_images(serially, call), own)
    error = distance(found, own)
    if name in PIXELS:
        # Images are cut to [0, 1], what is relative to the samples is more relative to them.
        assert serially.solution is not None
        tabled = sampler.form_of(problem) in ("affine", "tables")
        states = solution.samples if tabled else solution.z
        error = distance(states[:, -1], serially.solution.z[:, -1])
    moved = distance(_images(made(), doubled(call), 2)[: len(own)], own) if error > LIMIT else None
    return Cell(
        form=sampler.form_of(problem),
        rounds=solution.counts.rounds,
        length=problem.length,
        converged=bool(solution.converged.all()),
        error=error,
        moved=moved,
        serial=serial,
    )


def _images(pipe: Any, call: dict[str, Any], times: int = 1) -> Tensor:
    torch.manual_seed(0)  # some pipelines do not hand their generators to the scheduler
    return images_of(pipe(**call, generator=generators(times=times)))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def page(cells: dict[tuple[str, str], Cell]) -> str:
    """The tables of a page, with the sentences of what is refused below them."""
    names = {name: None for name, _ in cells}
    sentences: dict[str, int] = {}
    lines: list[str] = []
    for group in ([name for name in names if name not in FLOWS], [name for name in names if name in FLOWS]):
        keys = [key for key in SCHEDULERS if any((name, key) in cells for name in group)]
        if not keys:
            continue
        lines += ["| | " + " | ".join(group) + " |", "|:--|" + ":--|" * len(group)]
        for key in keys:
            row = [_entry(cells.get((name, key)), sentences) for name in group]
            lines.append(f"| {key} | " + " | ".join(row) + " |")
        lines.append("")
    lines += [f"{number}. {sentence}" for sentence, number in sentences.items()]
    return "\n".join(lines).strip()


def _entry(cell: Cell | None, sentences: dict[str, int]) -> str:
    if cell is None:
        return ""
    if cell.refused is not None:
        return f"({sentences.setdefault(str(cell), len(sentences) + 1)})"
    bad = "" if cell.within and cell.serial <= 1e-5 else " !"
    return f"{cell.form} {cell.rounds}/{cell.length} {cell.error:.0e}{bad}"


def main(
    pipelines: Annotated[list[str] | None, typer.Option("--pipeline", help="Repeat for several; default: all.")] = None,
    schedulers: Annotated[
        list[str] | None, typer.Option("--scheduler", help="Repeat for several; default: all that fit.")
    ] = None,
    steps: Annotated[int, typer.Option(help="num_inference_steps.")] = STEPS,
    write: Annotated[Path | None, typer.Option(help="A page that gets the tables between its markers.")] = None,
    threads: Annotated[int, typer.Option(help="Processor cores.")] = 2,
) -> None:
    """Print the outcome of every pair, and write the tables."""
    torch.set_num_threads(threads)
    quiet()
    for given, known in ((pipelines, list(NAMES)), (schedulers, list(SCHEDULERS))):
        if unknown := [each for each in given or [] if each not in known]:
            raise typer.BadParameter(f"no {', '.join(unknown)}; there are {', '.join(known)}")
    cells: dict[tuple[str, str], Cell] = {}
    for name, key in pairs():
        if name in (pipelines or NAMES) and key in (schedulers or SCHEDULERS):
            cells[name, key] = measured(name, key, steps=steps)
            print(f"{name:13} {key:16} {cells[name, key]}", flush=True)
    if write is not None:
        before, _, rest = write.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        write.write_text(f"{before}{BEGIN}\n\n{page(cells)}\n\n{END}{after}", encoding="utf-8")


def quiet() -> None:
    """Leave out what diffusers says of itself."""
    diffusers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)


if __name__ == "__main__":
    sys.exit(typer.run(main))
