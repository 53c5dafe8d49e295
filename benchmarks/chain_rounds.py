"""Rounds of a DDIM chain to a given error, for the preconditioners without acceleration.

    python benchmarks/chain_rounds.py [MODEL] [--steps 25 --steps 50] [--eta 1]

MODEL is a folder as diffusers' save_pretrained writes it; the bundled Fashion-MNIST model without one. Prints, for the
worst of the images, after how many rounds the image of that round is, and stays, within a relative error of 1e-1, 1e-2
and 1e-3 of the serial chain's; to stderr also the evaluations it took. Every chain starts at
``x_T`` everywhere. Rounds are counts and hardly depend on the machine.

The preconditioner zero needs nearly N rounds, two million evaluations for four images at N = 1000: beyond 300 steps
the count comes from what such rounds amount to (``recorded.jacobi_rounds``), and is marked with a star.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from recorded import jacobi_rounds, record, serial

import fixedpoint
from fixedpoint_diffusion.models import DiffusersModel, FashionMNISTModel
from fixedpoint_diffusion.task import DDIMSampling

TOLERANCES = (1e-1, 1e-2, 1e-3)
PRECONDITIONERS = ("zero", "coefficient", "identity")


def main(
    model: Annotated[Path | None, typer.Argument(help="Folder of a diffusers model; default: the bundled one.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="N, again for several; default: 25 50 100 250 1000.")] = None,
    eta: Annotated[float, typer.Option(help="0: deterministic; 1: ancestral.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Images; the worst one counts.")] = 4,
    seed: int = 0,
    most: Annotated[int, typer.Option(help="Give up after so many rounds; 0: never.")] = 0,
    device: str = "cpu",
) -> None:
    """Print the table."""
    lengths = steps or [25, 50, 100, 250, 1000]
    network = FashionMNISTModel() if model is None else DiffusersModel(path=str(model))
    found: dict[tuple[int, str], str] = {}
    for length in lengths:
        task = DDIMSampling(model=network, num_inference_steps=length, eta=eta, batch=batch, device=device)
        problem = task.problem(seed)
        target = serial(problem)
        for name in PRECONDITIONERS:
            began = time.perf_counter()
            if name == "zero" and length > 300:
                counts = [str(jacobi_rounds(problem, target, tolerance)) for tolerance in TOLERANCES]
                found[length, name] = " / ".join(counts) + " *"
                print(f"N = {length}, {name}: {found[length, name]}", file=sys.stderr, flush=True)
                continue
            solver = fixedpoint.ChainSolver(preconditioner=name)
            chain = record(problem, target, solver, most or length + 1, enough=TOLERANCES[-1])
            rounds = [chain.rounds_to(tolerance) for tolerance in TOLERANCES]
            said = " / ".join(f"> {len(chain.errors)}" if count is None else str(count) for count in rounds)
            found[length, name] = said
            seconds = time.perf_counter() - began
            print(
                f"N = {length}, {name}: {said}; {chain.evaluations / batch:g} evaluations an image, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    print(f"| N | {' | '.join(PRECONDITIONERS)} |\n|--:{'|--:' * len(PRECONDITIONERS)}|")
    for length in lengths:
        print(f"| {length} | {' | '.join(found[length, name] for name in PRECONDITIONERS)} |")


if __name__ == "__main__":
    torch.set_num_threads(2)
    typer.run(main)
