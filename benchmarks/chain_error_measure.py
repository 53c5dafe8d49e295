"""Accuracy of the error that a chain reports, compared with the serial chain over many solves.

    python benchmarks/chain_error_measure.py [--solves 1000] [--steps 25 --steps 100]
    python benchmarks/chain_error_measure.py --samplers [--solves 1000] [--sampler 2m-20 --sampler sde-20]

The solves are images of the bundled Fashion-MNIST model, with N of 25, 100 and 300, eta 0, in float32 (one image is one
solve). They take in turn: plain rounds from x_T everywhere, triangular Anderson from one jump, the same without slack,
and the same in a window of 16; and tolerances of 1e-1, 1e-2 and 1e-3. For every N the script prints the share of images
whose reported error is within a factor 3 of the true one, both extremes of that ratio, and how many were reported as
converged with a true error above three times their tolerance, in total and at 1e-3. Errors below 1e-6, the rounding
floor of float32, count as equal.

With ``--samplers`` the chains are those of six samplers of ``samplers.py`` instead, and block secants from x_T
everywhere take the place of triangular Anderson from one jump.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, NamedTuple

import torch
import typer
from samplers import JUDGED, named

import fixedpoint
from fixedpoint.chains import BlockSecant, ChainProblem, OneJumpStart
from fixedpoint_diffusion import FashionMNISTModel
from fixedpoint_diffusion.task import Sampling

LENGTHS = (25, 100, 300)
SOLVERS = (
    fixedpoint.ChainSolver(),
    fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=2), start=OneJumpStart()),
    fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=2), start=OneJumpStart(), slack=0.0),
    fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=2), start=OneJumpStart(), window=16),
)
# What ``auto`` plans with on the other samplers, in the same variants.
SAMPLER_SOLVERS = (
    fixedpoint.ChainSolver(),
    fixedpoint.ChainSolver(accelerator=BlockSecant()),
    fixedpoint.ChainSolver(accelerator=BlockSecant(), slack=0.0),
    fixedpoint.ChainSolver(accelerator=BlockSecant(), window=16),
)
TOLERANCES = (1e-1, 1e-2, 1e-3)
FLOOR = 1e-6


def main(
    solves: Annotated[int, typer.Option(help="Images in total, the same number for every chain.")] = 1000,
    batch: Annotated[int, typer.Option(help="Images per solve.")] = 4,
    steps: Annotated[list[int] | None, typer.Option(help="N, repeat for several; default: 25 100 300.")] = None,
    samplers: Annotated[bool, typer.Option("--samplers", help="Samplers of diffusers in place of DDIM.")] = False,
    sampler: Annotated[
        list[str] | None, typer.Option(help=f"Repeat for several; default: {', '.join(JUDGED)}.")
    ] = None,
    slack: Annotated[
        float | None, typer.Option(help="Slack of the solvers that have one; default: that of the library.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Processor cores.")] = 2,
) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    given = SAMPLER_SOLVERS if samplers or sampler else SOLVERS
    chosen = [replace(s, slack=slack) if slack is not None and s.slack else s for s in given]
    chains: dict[str, Callable[[int], ChainProblem]] = {}
    heading = "N"
    if samplers or sampler:
        heading = "sampler"
        for each in named(sampler, JUDGED).values():
            chains[str(each)] = partial(each.problem, batch)
    else:
        for length in steps or LENGTHS:
            chains[str(length)] = Sampling(model=FashionMNISTModel(), num_inference_steps=length, batch=batch).problem
    print(f"| {heading} | solves | within a factor 3 | reported / true | false claims | at {TOLERANCES[-1]:g} |")
    print("|:--|--:|--:|--:|--:|--:|")
    every: list[Judged] = []
    for name, make in chains.items():
        began = time.perf_counter()
        found = measured(make, chosen, -(-solves // (len(chains) * batch)))
        print(f"| {name} | {line(found)} |", flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        every += found
    print(f"| all | {line(every)} |")


def measured(make: Callable[[int], ChainProblem], solvers: list[fixedpoint.ChainSolver], count: int) -> list[Judged]:
    """The images of a number of solves, which take the settings in turn."""
    settings, found = list(itertools.product(solvers, TOLERANCES)), []
    for seed in range(count):
        problem = make(seed)
        exact = fixedpoint.solve(problem, solver="serial").z[:, -1].flatten(1).double()
        solver, rtol = settings[seed % len(settings)]
        solution = fixedpoint.solve(problem, solver=solver, rtol=rtol)
        last = solution.z[:, -1].flatten(1).double()
        true = ((last - exact).norm(dim=1) / exact.norm(dim=1)).tolist()
        for error, reported, converged in zip(true, solution.relative_error, solution.converged, strict=True):
            ratio = max(float(reported), FLOOR) / max(error, FLOOR)
            found.append(Judged(ratio, rtol, bool(converged) and error > 3 * rtol))
    return found


class Judged(NamedTuple):
    """An image: its reported error over the true one, the tolerance, and whether it was falsely called converged."""

    ratio: float
    rtol: float
    false: bool


def line(found: list[Judged]) -> str:
    """The cells of a line."""
    ratios = [each.ratio for each in found]
    within = sum(1 / 3 <= ratio <= 3 for ratio in ratios) / len(ratios)
    false, strict = sum(each.false for each in found), sum(each.false for each in found if each.rtol == TOLERANCES[-1])
    return f"{len(ratios)} | {within:.1%} | {min(ratios):.2f} to {max(ratios):.2f} | {false} | {strict}"


if __name__ == "__main__":
    typer.run(main)
