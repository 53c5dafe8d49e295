"""The quality of the plans of ``auto``: seconds of a chain step by step, jointly, and as ``auto`` plans it.

    python benchmarks/chain_planner.py [MODEL] [--sampler ddim --sampler 2m] [--steps 25 --steps 100] [--batch 1]

MODEL is a folder as diffusers' ``save_pretrained`` writes it; the default is the bundled Fashion-MNIST model. The
samplers are DDIM, DPM-Solver++ 2M and Euler with Karras sigmas. For every sampler, N and batch the script prints the
seconds of all settings that a plan chooses from (the joint solver of ``auto``), and those of ``auto``, including its
own measurements. All settings take turns several times,
and the median counts, so that other load on the machine affects all of them alike. The script also prints the expected
rounds and evaluations, the plan with its reason, and how far the plan is from the best setting.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import diffusers
import torch
import typer
from samplers import Sampler

import fixedpoint
from fixedpoint.chains import BlockSecant, ChainProblem, Serial
from fixedpoint.chains.joint.solver import joint
from fixedpoint.chains.planning.plan import FROM_ONE_JUMP, WITH_SECANTS
from fixedpoint_diffusion import DiffusersModel, FashionMNISTModel, Model
from fixedpoint_diffusion.task import Sampling

WINDOWS = (8, 16, 32, 64, 128)


Make = Callable[[Model, int, int, str], ChainProblem]


def ddim(eta: float) -> Make:
    """A function that makes a DDIM chain."""

    def make(network: Model, length: int, rows: int, device: str) -> ChainProblem:
        task = Sampling(model=network, num_inference_steps=length, eta=eta, batch=rows, device=device)
        problem = task.problem(0)
        assert isinstance(problem, ChainProblem)
        return problem

    return make


def scheduled(kind: str, **options: Any) -> Make:
    """A function that makes the chain of another scheduler, with the noise levels of the model."""

    def make(network: Model, length: int, rows: int, device: str) -> ChainProblem:
        schedule = network.own_schedule
        assert schedule is not None
        same = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
        given = {name: getattr(schedule, name) for name in same}
        sampler = Sampler(kind, lambda: getattr(diffusers, kind)(**given, **options), length)
        return sampler.problem_of(network.denoiser(schedule, rows, device), network.event_shape, rows, 0, device)

    return make


# Trailing spacing has different timesteps however many steps there are; the default one of 2M repeats some.
SAMPLERS: dict[str, Make] = {
    "ddim": ddim(0.0),
    "2m": scheduled("DPMSolverMultistepScheduler", solver_order=2, timestep_spacing="trailing"),
    "euler": scheduled("EulerDiscreteScheduler", use_karras_sigmas=True),
}


def settings(problem: ChainProblem, windows: Sequence[int]) -> dict[str, fixedpoint.Solver]:
    """The settings that a plan chooses from, by name, and ``auto``, which chooses."""
    found: dict[str, fixedpoint.Solver] = {"step by step": Serial()}
    found |= {f"window {p}": joint(problem, p) for p in windows if p < problem.length}
    return found | {"whole chain": joint(problem), "auto": fixedpoint.Auto()}


def main(
    model: Annotated[Path | None, typer.Argument(help="Folder of a diffusers model; default: the bundled one.")] = None,
    sampler: Annotated[
        list[str] | None, typer.Option(help="ddim, 2m, euler; repeat for several; default: all.")
    ] = None,
    steps: Annotated[list[int] | None, typer.Option(help="N, repeat for several; default: 25 100 1000.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Images, repeat for several; default: 1 16.")] = None,
    window: Annotated[list[int] | None, typer.Option(help="p, repeat for several; default: 8 16 32 64 128.")] = None,
    rtol: Annotated[float, typer.Option(help="Tolerance of the joint solves.")] = 1e-3,
    eta: Annotated[float, typer.Option(help="Of DDIM; 0: deterministic; 1: ancestral.")] = 0.0,
    repeats: Annotated[int, typer.Option(help="Times every setting is measured.")] = 3,
    most: Annotated[float, typer.Option(help="Seconds; settings that take longer are measured once.")] = 60.0,
    threads: Annotated[int, typer.Option(help="Processor cores.")] = 2,
    device: str = "cpu",
) -> None:
    """Print the tables."""
    network = FashionMNISTModel() if model is None else DiffusersModel(path=str(model))
    names = sampler or list(SAMPLERS)
    if unknown := [name for name in names if name not in SAMPLERS]:
        raise typer.BadParameter(f"no sampler {', '.join(unknown)}; there are {', '.join(SAMPLERS)}")
    made = {**SAMPLERS, "ddim": ddim(eta)}
    torch.set_num_threads(threads)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}")
    print("\n| sampler | N | batch | setting | seconds | rounds | expected | evaluations / N | expected |")
    print("|:--|--:|--:|:--|--:|--:|--:|--:|--:|", flush=True)
    told = []
    for name, length, rows in itertools.product(names, steps or [25, 100, 1000], batch or [1, 16]):
        problem = made[name](network, length, rows, device)
        told.append(measure(f"{name} | {length} | {rows}", problem, Measuring(window or WINDOWS, rtol, repeats, most)))
    print("\n" + "\n".join(told))


class Measuring(NamedTuple):
    """What is solved, and how often."""

    windows: Sequence[int]
    rtol: float
    repeats: int
    most: float


def measure(label: str, problem: ChainProblem, how: Measuring) -> str:
    """Print the lines of one chain; return how good the plan of ``auto`` was."""
    length, rtol = problem.length, how.rtol
    fixedpoint.solve(problem, solver=joint(problem), rtol=rtol, max_rounds=2)  # a warm-up
    estimate = WITH_SECANTS if isinstance(joint(problem).accelerator, BlockSecant) else FROM_ONE_JUMP
    seconds: dict[str, list[float]] = {}
    solved: dict[str, fixedpoint.Solution] = {}
    for repeat in range(how.repeats):
        for name, solver in settings(problem, how.windows).items():
            if repeat and seconds[name][0] > how.most:
                continue
            began = time.perf_counter()
            solved[name] = fixedpoint.solve(problem, solver=solver, rtol=rtol)
            float(solved[name].state[0, -1])
            seconds.setdefault(name, []).append(time.perf_counter() - began)
        print(f"{label}, repeat {repeat + 1}", file=sys.stderr, flush=True)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name, solution in solved.items():
        work = solution.evaluations.mean() / length
        hoped = [""] * 2
        if "w" in name:
            width = length if name == "whole chain" else int(name.split()[-1])
            rounds, evaluations = estimate.expected(length, width, rtol)
            hoped = [str(rounds), f"{evaluations / length:.2f}"]
        print(
            f"| {label} | {name} | {median[name]:.2f} | {solution.counts.rounds} | {hoped[0]} | "
            f"{work:.2f} | {hoped[1]} |",
            flush=True,
        )
    best = min((name for name in median if name != "auto"), key=median.__getitem__)
    return (
        f"{label}: {solved['auto'].extras['plan']}; it took {median['auto']:.2f} s, "
        f"{median['auto'] / median[best]:.2f} of the best ({best}), "
        f"{median['auto'] / median['step by step']:.2f} of step by step"
    )


if __name__ == "__main__":
    typer.run(main)
