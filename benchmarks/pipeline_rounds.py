"""Rounds of a pipeline with the bundled network, by replay of its own code and without, for 26 settings of schedulers.

    python benchmarks/pipeline_rounds.py [--setting ddim --setting 2m-karras] [--steps 20] [--guidance-scale 1]
                                         [--image 3 --image 5 --image 8 --image 9]

Four images of the classes 0 to 3, the worst one counts; relative tolerance 1e-3. For every setting the script prints
the number of steps ``K`` that the scheduler takes; then for the form that is chosen by default and for ``predictions``,
in which the pipeline's own code joins the predictions: the round from which the image is, and stays, within 1e-3 of
that of the pipeline's own call, the round in which the solve ends by itself, the network evaluations in units of ``K``,
and the final error. A ``!`` marks more rounds to 1e-3 by replay than 13, 16 for schedulers of two stages and 17 for
those that add noise, or an error above three tolerances.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import diffusers
import torch
import typer

import fixedpoint
from fixedpoint.chains.joint.solver import joint
from fixedpoint_diffusion import parallel
from fixedpoint_diffusion.fashion_mnist.pipeline import FashionMNISTPipeline

RTOL = 1e-3
ONE, TWO, NOISY = 13, 16, 17

# Name: class of diffusers, its settings, arguments of the call, most rounds by replay.
SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "ddim": ("DDIMScheduler", {}, {}, ONE),
    "ddim-trailing": ("DDIMScheduler", {"timestep_spacing": "trailing"}, {}, ONE),
    "ddim-zero-snr": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {},
        ONE,
    ),
    "ddim-clipped": ("DDIMScheduler", {"clip_sample": True}, {}, ONE),
    "ddim-thresholded": ("DDIMScheduler", {"thresholding": True}, {}, ONE),
    "ddim-eta-1": ("DDIMScheduler", {}, {"eta": 1.0}, NOISY),
    "ddpm": ("DDPMScheduler", {}, {}, NOISY),
    "ddpm-clipped": ("DDPMScheduler", {"clip_sample": True}, {}, NOISY),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, {}, ONE),
    "pndm-runge-kutta": ("PNDMScheduler", {"skip_prk_steps": False}, {}, TWO),
    "lms": ("LMSDiscreteScheduler", {"use_karras_sigmas": True}, {}, ONE),
    "deis": ("DEISMultistepScheduler", {}, {}, ONE),
    "euler": ("EulerDiscreteScheduler", {}, {}, ONE),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}, ONE),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}, {}, NOISY),
    "heun-karras": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, {}, TWO),
    "kdpm2": ("KDPM2DiscreteScheduler", {"use_karras_sigmas": True}, {}, TWO),
    "kdpm2-ancestral": ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}, {}, NOISY),
    "2m": ("DPMSolverMultistepScheduler", {}, {}, ONE),
    "2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}, ONE),
    "2m-thresholded": ("DPMSolverMultistepScheduler", {"thresholding": True}, {}, ONE),
    "2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}, NOISY),
    "3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}, {}, ONE),
    "singlestep-2": ("DPMSolverSinglestepScheduler", {}, {}, TWO),
    "unipc": ("UniPCMultistepScheduler", {}, {}, ONE),
    "unipc-3": ("UniPCMultistepScheduler", {"solver_order": 3}, {}, ONE),
    "sa": ("SASolverScheduler", {}, {}, NOISY),
    "lcm": ("LCMScheduler", {"clip_sample": False}, {}, NOISY),
    "tcd": ("TCDScheduler", {"clip_sample": False}, {}, NOISY),
}


def main(
    setting: Annotated[list[str] | None, typer.Option(help="Repeat for several; default: all.")] = None,
    steps: Annotated[int, typer.Option(help="num_inference_steps.")] = 20,
    guidance_scale: Annotated[float, typer.Option(help="1: no guidance.")] = 1.0,
    image: Annotated[list[int] | None, typer.Option(help="Class of an image; repeat. Default: 0, 1, 2 and 3.")] = None,
    threads: Annotated[int, typer.Option(help="Processor cores.")] = 2,
) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    diffusers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
    names = setting or list(SETTINGS)
    if unknown := [name for name in names if name not in SETTINGS]:
        raise typer.BadParameter(f"no setting {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
    print(f"{'':17} {'K':>3}  {'form':11} 1e-3  end  work    error   by replay: 1e-3  end  work    error")
    for name in names:
        print(row(name, image or [0, 1, 2, 3], steps, guidance_scale), flush=True)


def row(name: str, classes: list[int], steps: int, scale: float) -> str:
    """The line of a setting."""
    kind, settings, given, most = SETTINGS[name]
    pipe = FashionMNISTPipeline.bundled(getattr(diffusers, kind), **settings)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "latent", **given}
    own = pipe(classes, generator=generators(len(classes)), **call).images
    cells, forms = [], []
    for form in (None, "predictions"):
        sampler = parallel(pipe, rtol=RTOL, form=form)
        with torch.no_grad():
            problem = sampler.problem(classes, generator=generators(len(classes)), **call)
            seen: list[float] = []
            solution = fixedpoint.solve(
                problem,
                solver=joint(problem),
                rtol=RTOL,
                on_round=lambda at, seen=seen: seen.append(off(at.latest, own)),
            )
            found = sampler.finish(problem, solution).images
        error, reached = off(found, own), 1 + max((n for n, each in enumerate(seen, 1) if each > RTOL), default=0)
        rounds, work = solution.counts.rounds, solution.counts.evaluations.max() / problem.length
        bad = " !" if error > 3 * RTOL or (form and reached > most) or not solution.converged.all() else ""
        forms.append(sampler.form_of(problem))
        cells.append(f"{reached:4d} {rounds:4d} {work:5.1f} {error:8.1e}{bad}")
    return f"{name:17} {problem.length:3d}  {forms[0]:11} {cells[0]}              {cells[1]}"


def off(found: torch.Tensor, own: torch.Tensor) -> float:
    """The largest relative error of an image."""
    return float(((found.view_as(own) - own).flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1)).max())


def generators(count: int) -> list[torch.Generator]:
    """One for each image."""
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


if __name__ == "__main__":
    sys.exit(typer.run(main))
