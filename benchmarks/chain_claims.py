"""False claims of convergence where samples are undecided between modes, on mixtures with exact scores.

    python benchmarks/chain_claims.py [--samples 300]
    python benchmarks/chain_claims.py --samplers [--samples 300] [--sampler 2m-20 --sampler sde-20]

The samples are those of the mixtures of ``chain_accelerators.py``, with N of 25, 50 and 100, eta 0 and 1, in float32.
They are solved by triangular Anderson acceleration, as ``auto`` chooses it, and by plain rounds, each from ``x_T``
everywhere and from one jump. For every tolerance the script prints how many samples were reported as converged, how
many of these are further than three tolerances from the serial chain's sample, and the largest error of all. An error
of about 1 means that the sample belongs to another mode.

With ``--samplers`` the chains are those of six samplers of ``samplers.py`` instead, one table each, and block secants
take the place of triangular Anderson.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated

import torch
import typer
from chain_accelerators import MODELS
from recorded import apart, serial
from samplers import JUDGED, Sampler, named

import fixedpoint
from fixedpoint.chains import BlockSecant, ChainProblem, ConstantStart, OneJumpStart
from fixedpoint_diffusion import DDIMSchedule, GaussianMixture
from fixedpoint_diffusion.task import Sampling

TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
LENGTHS = (25, 50, 100)
Errors = dict[float, list[torch.Tensor]]


def solvers(quicker: fixedpoint.Solver) -> list[fixedpoint.ChainSolver]:
    """Accelerated and plain rounds, each from two starts."""
    return [
        fixedpoint.ChainSolver(accelerator=accelerator, start=start)
        for accelerator in (quicker, fixedpoint.Picard())
        for start in (ConstantStart(), OneJumpStart())
    ]


SOLVERS = solvers(fixedpoint.Anderson(memory=2))
SAMPLER_SOLVERS = solvers(BlockSecant())


def main(
    samples: Annotated[int, typer.Option(help="Samples of every mixture, chain, solver and tolerance.")] = 1000,
    samplers: Annotated[bool, typer.Option("--samplers", help="Samplers of diffusers in place of DDIM.")] = False,
    sampler: Annotated[list[str] | None, typer.Option(help=f"Repeat for several; all: {', '.join(JUDGED)}.")] = None,
    tolerance: Annotated[list[float] | None, typer.Option(help="Repeat for several; default: six.")] = None,
    threads: Annotated[int, typer.Option(help="Processor cores.")] = 2,
) -> None:
    """Print the tables."""
    torch.set_num_threads(threads)
    tolerances = tuple(tolerance or TOLERANCES)
    if not samplers and not sampler:
        write(judged(ddim(samples), SOLVERS, tolerances))
        return
    every: Errors = {each: [] for each in tolerances}
    chosen = named(sampler, JUDGED).values()
    for each in chosen:
        print(f"\n{each}\n")
        found = judged(problems(each, samples), SAMPLER_SOLVERS, tolerances)
        write(found)
        for asked, errors in found.items():
            every[asked] += errors
    if len(chosen) > 1:
        print("\nAll\n")
        write(every)


def ddim(samples: int) -> Iterator[ChainProblem]:
    """The chains of DDIM."""
    for model, length, eta in itertools.product(MODELS.values(), LENGTHS, (0.0, 1.0)):
        schedule = DDIMSchedule(clip_sample=False)
        task = Sampling(model=model, schedule=schedule, num_inference_steps=length, eta=eta, batch=samples)
        problem = task.problem(0)
        assert isinstance(problem, ChainProblem)
        yield problem


def problems(sampler: Sampler, samples: int) -> Iterator[ChainProblem]:
    """The chains of a sampler, one for every mixture."""
    schedule = DDIMSchedule(clip_sample=False, prediction_type="v_prediction")
    for model in MODELS.values():
        mixture = model.denoiser(schedule)
        assert isinstance(mixture, GaussianMixture)
        if sampler.flow:
            parts = (mixture.means, mixture.variances, mixture.weights)
            mixture = GaussianMixture(*parts, schedule, prediction_type="flow_prediction")
        yield sampler.problem_of(mixture, model.event_shape, samples)


def judged(
    chains: Iterator[ChainProblem], solvers: list[fixedpoint.ChainSolver], tolerances: tuple[float, ...]
) -> Errors:
    """The true errors of all samples that were reported as converged."""
    found: Errors = {tolerance: [] for tolerance in tolerances}
    for problem in chains:
        target = serial(problem)
        for solver, tolerance in itertools.product(solvers, tolerances):
            solution = fixedpoint.solve(problem, solver=solver, rtol=tolerance)
            found[tolerance].append(apart(solution.z[:, -1], target)[torch.from_numpy(solution.converged)])
    return found


def write(found: Errors) -> None:
    """Print a table."""
    print("| tolerance | called converged | beyond 3 tolerances | largest error |\n|--:|--:|--:|--:|")
    for tolerance, errors in found.items():
        every = torch.cat(errors)
        beyond = int((every > 3 * tolerance).sum())
        print(f"| {tolerance:g} | {len(every)} | {beyond} | {float(every.amax()):.2g} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
