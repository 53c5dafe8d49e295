"""False claims of convergence where samples are undecided between modes, on mixtures with exact scores.

    python benchmarks/chain_claims.py [--samples 300]

The samples are those of the mixtures of ``chain_accelerators.py``, with N of 25, 50 and 100, eta 0 and 1, in float32.
They are solved by triangular Anderson acceleration, as ``auto`` chooses it, and by plain rounds, each from ``x_T``
everywhere and from one jump. For every tolerance the script prints how many samples were reported as converged, how
many of these are further than three tolerances from the serial chain's sample, and the largest error of all. An error
of about 1 means that the sample belongs to another mode.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
import typer
from chain_accelerators import MODELS
from recorded import apart, serial

import fixedpoint
from fixedpoint.chains import ChainProblem, ConstantStart, OneJumpStart
from fixedpoint_diffusion import DDIMSchedule
from fixedpoint_diffusion.task import Sampling

TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
LENGTHS = (25, 50, 100)
SOLVERS = [
    fixedpoint.ChainSolver(accelerator=accelerator, start=start)
    for accelerator in (fixedpoint.Anderson(memory=2), fixedpoint.Picard())
    for start in (ConstantStart(), OneJumpStart())
]


def main(
    samples: Annotated[int, typer.Option(help="Samples of every mixture, length, eta, solver and tolerance.")] = 1000,
) -> None:
    """Print the table."""
    found: dict[float, list[torch.Tensor]] = {tolerance: [] for tolerance in TOLERANCES}
    for model, length, eta in itertools.product(MODELS.values(), LENGTHS, (0.0, 1.0)):
        schedule = DDIMSchedule(clip_sample=False)
        task = Sampling(model=model, schedule=schedule, num_inference_steps=length, eta=eta, batch=samples)
        problem = task.problem(0)
        assert isinstance(problem, ChainProblem)
        target = serial(problem)
        for solver, tolerance in itertools.product(SOLVERS, TOLERANCES):
            solution = fixedpoint.solve(problem, solver=solver, rtol=tolerance)
            found[tolerance].append(apart(solution.z[:, -1], target)[torch.from_numpy(solution.converged)])
    print("| tolerance | called converged | beyond 3 tolerances | largest error |\n|--:|--:|--:|--:|")
    for tolerance, errors in found.items():
        every = torch.cat(errors)
        beyond = int((every > 3 * tolerance).sum())
        print(f"| {tolerance:g} | {len(every)} | {beyond} | {float(every.amax()):.2g} |")


if __name__ == "__main__":
    typer.run(main)
