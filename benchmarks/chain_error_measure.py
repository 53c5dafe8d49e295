"""Accuracy of the error that a chain reports, compared with the serial chain over many solves.

    python benchmarks/chain_error_measure.py [--solves 1000] [--steps 25 --steps 100]

The solves are images of the bundled Fashion-MNIST model, with N of 25, 100 and 300, eta 0, in float32 (one image is one
solve). They take in turn: plain rounds from x_T everywhere, triangular Anderson from one jump, the same without slack,
and the same in a window of 16; and tolerances of 1e-1, 1e-2 and 1e-3. For every N the script prints the share of images
whose reported error is within a factor 3 of the true one, both extremes of that ratio, and how many were reported as
converged with a true error above three times their tolerance. Errors below 1e-6, the rounding floor of float32, count
as equal.
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import replace
from typing import Annotated

import torch
import typer

import fixedpoint
from fixedpoint.chains import OneJumpStart
from fixedpoint_diffusion import FashionMNISTModel
from fixedpoint_diffusion.task import Sampling

LENGTHS = (25, 100, 300)
SOLVERS = (
    fixedpoint.ChainSolver(),
    fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=2), start=OneJumpStart()),
    fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=2), start=OneJumpStart(), slack=0.0),
    fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=2), start=OneJumpStart(), window=16),
)
TOLERANCES = (1e-1, 1e-2, 1e-3)
FLOOR = 1e-6


def main(
    solves: Annotated[int, typer.Option(help="Images in total, the same number for every length.")] = 1000,
    batch: Annotated[int, typer.Option(help="Images per solve.")] = 4,
    steps: Annotated[list[int] | None, typer.Option(help="N, repeat for several; default: 25 100 300.")] = None,
    slack: Annotated[
        float | None, typer.Option(help="Slack of the solvers that have one; default: that of the library.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Processor cores.")] = 2,
) -> None:
    """Print the table."""
    lengths = steps or list(LENGTHS)
    torch.set_num_threads(threads)
    solvers = [replace(s, slack=slack) if slack is not None and s.slack else s for s in SOLVERS]
    settings = list(itertools.product(solvers, TOLERANCES))
    print("| N | solves | within a factor 3 | reported / true | false claims |\n|--:|--:|--:|--:|--:|")
    every: list[float] = []
    lies = 0
    for length in lengths:
        began, ratios, false = time.perf_counter(), [], 0
        for seed in range(-(-solves // (len(lengths) * batch))):
            problem = Sampling(model=FashionMNISTModel(), num_inference_steps=length, batch=batch).problem(seed)
            exact = fixedpoint.solve(problem, solver="serial").z[:, -1].flatten(1).double()
            solver, rtol = settings[seed % len(settings)]
            solution = fixedpoint.solve(problem, solver=solver, rtol=rtol)
            last = solution.z[:, -1].flatten(1).double()
            true = (last - exact).norm(dim=1) / exact.norm(dim=1)
            reported = torch.from_numpy(solution.relative_error)
            false += int((torch.from_numpy(solution.converged) & (true > 3 * rtol)).sum())
            ratios += (reported.clamp(min=FLOOR) / true.clamp(min=FLOOR)).tolist()
        within = sum(1 / 3 <= ratio <= 3 for ratio in ratios) / len(ratios)
        print(
            f"| {length} | {len(ratios)} | {within:.1%} | {min(ratios):.2f} to {max(ratios):.2f} | {false} |",
            flush=True,
        )
        print(f"N = {length}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        every, lies = every + ratios, lies + false
    within = sum(1 / 3 <= ratio <= 3 for ratio in every) / len(every)
    print(f"| all | {len(every)} | {within:.1%} | {min(every):.2f} to {max(every):.2f} | {lies} |")


if __name__ == "__main__":
    typer.run(main)
