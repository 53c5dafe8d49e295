"""Error to the image of the differential equation, at equal numbers of sequential evaluations.

    python benchmarks/sampler_quality.py [--plot docs/assets/sampler-quality.png]

All samplers approximate the probability flow of one network from the same noise. Its image is that of DPM-Solver++ 2M
in 1000 steps; how far other samplers of many steps are from it is printed first. Then come, for the bundled model, the
mean over the images and the worst of them: serial samplers, which take one sequential evaluation a step, and joint
solves of DPM-Solver++ 2M, which take one a round; both with the default spacing of timesteps and with Karras sigmas.
DDIM starts at the last training timestep here (trailing spacing), as the others do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import diffusers
import matplotlib.pyplot as plt
import torch
import typer
from recorded import apart, record, serial
from samplers import DPM, SETTINGS, UNIPC, Sampler, made
from torch import Tensor

from fixedpoint.chains.joint.solver import joint


def _trailing_2m() -> Any:
    return diffusers.DPMSolverMultistepScheduler(**SETTINGS, solver_order=2, timestep_spacing="trailing")


BUDGETS = (5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30)
SERIAL = {
    "serial DDIM": Sampler(
        "DDIM",
        lambda: diffusers.DDIMScheduler(**SETTINGS, clip_sample=False, timestep_spacing="trailing"),
        1000,
    ),
    "serial 2M": Sampler("DPM-Solver++ 2M", DPM, 1000),
    "serial UniPC": Sampler("UniPC", UNIPC, 1000),
}
SERIAL |= {
    "serial 2M Karras": Sampler("DPM-Solver++ 2M", made("DPMSolverMultistepScheduler", use_karras_sigmas=True), 1000),
    "serial UniPC Karras": Sampler("UniPC", made("UniPCMultistepScheduler", use_karras_sigmas=True), 1000),
}
JOINT = {f"joint 2M, N = {n}": Sampler("DPM-Solver++ 2M", DPM, n) for n in (20, 50)}
JOINT |= {f"joint 2M Karras, N = {n}": replace(SERIAL["serial 2M Karras"], steps=n) for n in (20, 50)}
# Samplers of many steps, whose images are compared with that of the last one.
MANY = [
    replace(SERIAL["serial DDIM"], steps=1000),
    Sampler("Heun", lambda: diffusers.HeunDiscreteScheduler(**SETTINGS), 250),
    # trailing, since the default spacing repeats timesteps where there are as many steps, and divides by zero
    *(Sampler("DPM-Solver++ 2M", _trailing_2m, n) for n in (100, 250, 500, 1000)),
]
STROKES = {
    "serial DDIM": ("#80878f", "--"),
    "serial 2M": ("#0072b2", "--"),
    "serial UniPC": ("#009e73", "--"),
    "serial 2M Karras": ("#0072b2", ":"),
    "serial UniPC Karras": ("#009e73", ":"),
    "joint 2M, N = 20": ("#e69f00", "-"),
    "joint 2M, N = 50": ("#d55e00", "-"),
    "joint 2M Karras, N = 20": ("#cc79a7", "-"),
    "joint 2M Karras, N = 50": ("#56b4e9", "-"),
}

Errors = dict[str, dict[int, Tensor]]


def main(
    images: Annotated[int, typer.Option(help="Images, of as many classes.")] = 4,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="Processor cores.")] = 2,
    plot: Annotated[Path | None, typer.Option(help="Write the picture.")] = None,
) -> None:
    """Print the tables, and draw."""
    torch.set_num_threads(threads)
    with torch.no_grad():
        ends = {str(each): serial(each.problem(images, seed)) for each in MANY}
        name, exact = list(ends.items())[-1]
        print(f"Largest relative distance to {name}\n\n| sampler | distance |\n|:--|--:|")
        for other, image in ends.items():
            if other != name:
                print(f"| {other} | {float(apart(image, exact).max()):.1e} |", flush=True)
        found = {label: serial_errors(each, exact, images, seed) for label, each in SERIAL.items()}
        found |= {label: joint_errors(each, exact, images, seed) for label, each in JOINT.items()}
    for title, summary in (("Mean of the images", torch.mean), ("Worst of the images", torch.amax)):
        write(found, title, summary)
    if plot is not None:
        draw(found, plot)


def write(found: Errors, title: str, summary: Callable[[Tensor], Tensor]) -> None:
    """Print a table."""
    print(f"\n{title}\n\n| sequential evaluations | {' | '.join(map(str, BUDGETS))} |\n|:--{'|--:' * len(BUDGETS)}|")
    for label, errors in found.items():
        cells = [f"{float(summary(errors[budget])):.3f}" if budget in errors else "" for budget in BUDGETS]
        print(f"| {label} | {' | '.join(cells)} |")


def serial_errors(sampler: Sampler, exact: Tensor, images: int, seed: int) -> dict[int, Tensor]:
    """By the number of sequential evaluations, which is that of the steps."""
    found = {}
    for budget in BUDGETS:
        problem = replace(sampler, steps=budget).problem(images, seed)
        assert problem.length == budget
        found[budget] = apart(serial(problem), exact)
    return found


def joint_errors(sampler: Sampler, exact: Tensor, images: int, seed: int) -> dict[int, Tensor]:
    """By the number of sequential evaluations, which is that of the rounds."""
    problem = sampler.problem(images, seed)
    seen = record(problem, exact, joint(problem), min(problem.length, max(BUDGETS)))
    errors = zip(seen.rounds, seen.errors, strict=True)
    return {rounds: error for rounds, error in errors if rounds >= min(BUDGETS)}


def draw(found: Errors, file: Path) -> None:
    """Draw the mean errors over the evaluations."""
    figure, axis = plt.subplots(figsize=(8.5, 4.4), layout="constrained")
    for label, errors in found.items():
        colour, dashes = STROKES[label]
        means = [float(each.mean()) for each in errors.values()]
        axis.plot(list(errors), means, color=colour, linestyle=dashes, linewidth=1.8, marker="o", markersize=4)
    axis.set(
        yscale="log", xlabel="sequential evaluations of the network", ylabel="relative distance to the equation's image"
    )
    axis.set_xticks([5, 10, 15, 20, 25, 30])
    axis.grid(color="#d8dce1", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(list(found), loc="outside right center", frameon=False, handlelength=3)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    typer.run(main)
