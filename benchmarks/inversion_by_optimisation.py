"""Finds the noise of images by optimisation, with four gradients, the same optimiser and the same start.

    python benchmarks/inversion_by_optimisation.py [--steps 200] [--images 8] [--start random] [--optimiser adam]

Minimises ``||x_0(x_T) - x*||^2`` over ``x_T`` for test images and the bundled model with their classes, by DDIM with
eta 0, in float32. The gradients are: backpropagation through the steps one after another; one damped step of the joint
map, as its authors use it (Pokle, Geng & Kolter 2022, tau = 0.1); three such steps; and the adjoint chain. Each runs in
a process of its own that writes a checkpoint to the output folder after every step, and an interrupted one continues
from it. The script prints losses, sequential calls of the network (a forward or a backward pass is one), seconds, the
cosine of each gradient with the first at the start, and how closely the losses of the adjoint chain follow those of the
first. The picture is docs/assets/inversion-optimisation.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import fixedpoint
from fixedpoint.chains import BlockSecant, ChainProblem
from fixedpoint_diffusion import (
    DDIMChain,
    Exact,
    FashionMNISTModel,
    LatentGradient,
    OneStep,
    Optimisation,
    OptimisedInversion,
    OptimisedLatents,
    Phantom,
    Serial,
    draw_noise,
    held_out_images,
    row_seeds,
)

ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"
SOLVER = fixedpoint.ChainSolver(accelerator=BlockSecant())
FORWARD, ADJOINT = fixedpoint.Termination(rtol=2e-3), fixedpoint.Termination(rtol=2e-2)
GRADIENTS: dict[str, LatentGradient] = {
    "serial": Serial(),
    "one-step": OneStep(solver=SOLVER, termination=FORWARD, tau=0.1),
    "phantom": Phantom(solver=SOLVER, termination=FORWARD, steps=3, tau=0.1),
    "exact": Exact(solver=SOLVER, termination=FORWARD, adjoint_solver=SOLVER, adjoint_termination=ADJOINT),
}
NAMES = {
    "serial": "backpropagation, step by step",
    "one-step": "one step of the joint map",
    "phantom": "three steps of the joint map",
    "exact": "adjoint chain",
}


def main() -> None:
    """Run the methods that are not done, print the table and the verdict, and draw the picture."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    if asked.child == "cosines":
        print(json.dumps(cosines(asked)))
    elif asked.child:
        run(asked, asked.child)
    else:
        asked.output.mkdir(parents=True, exist_ok=True)
        found = {}
        for name in asked.gradients:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", name], check=True)
            found[name] = under_way(asked, name, restored=True).result()
        report(asked, found)
        if not asked.no_picture:
            draw(found)


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="number of updates")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--length", type=int, default=50, help="N, steps of the chain")
    parser.add_argument("--start", choices=("random", "inverted"), default="random")
    parser.add_argument("--optimiser", choices=("adam", "lbfgs"), default="adam")
    parser.add_argument("--learning-rate", type=float, default=None, help="default: 0.01 for adam, 1 for lbfgs")
    parser.add_argument("--gradients", nargs="+", choices=tuple(GRADIENTS), default=list(GRADIENTS))
    parser.add_argument("--output", type=Path, default=Path("runs/inversion"), help="folder of the checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-picture", action="store_true")
    parser.add_argument("--child", choices=("cosines", *GRADIENTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def posed(asked: argparse.Namespace) -> tuple[DDIMChain, Tensor, Tensor]:
    """The chain, the images and the start."""
    model, count = FashionMNISTModel(), asked.images
    schedule = model.own_schedule
    assert schedule is not None
    chain = DDIMChain(model.denoiser(schedule, count), schedule, asked.length)
    images = held_out_images()[0][:count]
    if asked.start == "inverted":
        return chain, images, inverted(chain, images)
    x_T, _ = draw_noise(row_seeds(0, count), model.event_shape)
    return chain, images, x_T


@torch.no_grad()
def inverted(chain: DDIMChain, images: Tensor) -> Tensor:
    """The usual DDIM inversion: each step back evaluates the network at the state that it starts from."""
    x, row = images, torch.arange(len(images))
    for step in reversed(range(chain.length)):
        defect = x - chain.step(x, torch.full_like(row, step), row)
        x = x + defect / chain.coefficients()[step].to(x)
    return x


def under_way(asked: argparse.Namespace, name: str, *, restored: bool) -> Optimisation:
    """An inversion, continued from its checkpoint if there is one."""
    chain, images, start = posed(asked)
    options = OptimisedInversion(
        gradient=GRADIENTS[name],  # type: ignore[arg-type]  # one of them
        optimiser=asked.optimiser,
        learning_rate=asked.learning_rate,
        steps=asked.steps,
        enough=0.0,
    )
    made = options.begin(chain, images, start)
    path = checkpoint(asked, name)
    if path.exists():
        made.restore(path)
    elif restored:
        raise FileNotFoundError(path)
    return made


def checkpoint(asked: argparse.Namespace, name: str) -> Path:
    """The checkpoint of a method, in one folder per setting, so that no other setting continues from it."""
    rate = "" if asked.learning_rate is None else f"-{asked.learning_rate:g}"
    folder: Path = asked.output / f"{asked.optimiser}{rate}-{asked.start}-{asked.length}-{asked.images}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "checkpoint.safetensors"


def run(asked: argparse.Namespace, name: str) -> None:
    """Run an inversion to its end, with progress on stderr."""
    made = under_way(asked, name, restored=False)
    while made.goes_on:
        step = made.step()
        made.save(checkpoint(asked, name))
        print(
            f"{name}: step {step.number}, loss {np.nanmean(step.losses):.3f}, {step.calls} calls, "
            f"{step.seconds:.0f} s, {int((~step.solved).sum())} rows not solved",
            file=sys.stderr,
            flush=True,
        )


def cosines(asked: argparse.Namespace) -> dict[str, float]:
    """The mean cosine of each gradient with that of backpropagation, at the start."""
    chain, images, start = posed(asked)
    problem = ChainProblem(chain, start, max_batch=chain.denoiser.quick_batch(start.device))
    exact = Serial().find(problem, images, {}).gradient.flatten(1)
    found = {name: gradient.find(problem, images, {}).gradient.flatten(1) for name, gradient in GRADIENTS.items()}
    return {name: float(torch.cosine_similarity(each, exact).mean()) for name, each in found.items()}


def report(asked: argparse.Namespace, found: dict[str, OptimisedLatents]) -> None:
    """Print the table and the verdict."""
    path = asked.output / f"cosines-{asked.start}-{asked.length}-{asked.images}.json"
    if not path.exists():
        command = [sys.executable, __file__, *sys.argv[1:], "--child", "cosines"]
        path.write_text(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    cosine = json.loads(path.read_text())
    at = [asked.steps // 4, asked.steps // 2, asked.steps]
    print(f"\nN = {asked.length}, {asked.images} images, {asked.optimiser}, start {asked.start}")
    print(f"torch {torch.__version__}, {asked.threads} threads\n")
    print("| gradient | " + " | ".join(f"loss after {n}: mean (median)" for n in at), end=" ")
    print("| calls in sequence | seconds | evaluations an image | products | cosine |")
    print("|:--|" + "--:|" * (len(at) + 5))
    for name, each in found.items():
        losses = [f"{np.mean(each.losses[n]):.2f} ({np.median(each.losses[n]):.2f})" for n in at]
        cells = [*losses, str(each.calls[-1]), f"{each.seconds[-1]:.0f}", f"{each.evaluations.mean():.0f}"]
        print(f"| {NAMES[name]} | " + " | ".join([*cells, f"{each.products.mean():.0f}", f"{cosine[name]:.3f}"]) + " |")
        unsolved = int((~each.solved).sum())
        if unsolved:
            print(f"\n{NAMES[name]}: {unsolved} of {each.solved.size} solves not within their tolerance\n")
    if {"serial", "exact"} <= found.keys():
        one, other = found["serial"], found["exact"]
        means = one.losses.mean(axis=1), other.losses.mean(axis=1)
        apart = np.abs(means[1] / means[0] - 1).max()
        ends = np.abs(other.losses[-1] / one.losses[-1] - 1)
        print(
            f"\nthe adjoint chain follows the losses of backpropagation within {apart:.1%} "
            f"(at the end: mean {abs(means[1][-1] / means[0][-1] - 1):.1%}, single images up to {ends.max():.1%}) "
            f"at {other.calls[-1] / one.calls[-1]:.3f} of its sequential calls "
            f"and {other.seconds[-1] / one.seconds[-1]:.1f} times its seconds"
        )


def draw(found: dict[str, OptimisedLatents]) -> None:
    """Draw the picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from fixedpoint.report.palette import GRID, strokes

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    lines = strokes(NAMES, NAMES)
    for axes, kind in zip(panels, ("calls", "seconds"), strict=True):
        for name, each in found.items():
            line = lines[name]
            axes.plot(getattr(each, kind), each.losses.mean(axis=1), color=line.colour, label=NAMES[name])
        axes.set_yscale("log")
        axes.set_xlim(0)
        axes.set_xlabel({"calls": "calls of the network in sequence", "seconds": "seconds"}[kind])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GRID, linewidth=0.6)
    panels[0].set_ylabel("squared error of the image, mean")
    panels[1].legend(frameon=False, fontsize=9)
    figure.savefig(ASSETS / "inversion-optimisation.png", dpi=160)


if __name__ == "__main__":
    main()
