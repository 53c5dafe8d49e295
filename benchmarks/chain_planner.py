"""The quality of the plans of ``auto``: seconds of a chain step by step, jointly, and as ``auto`` plans it.

    python benchmarks/chain_planner.py [MODEL] [--steps 25 --steps 100] [--batch 1 --batch 16] [--rtol 1e-3]

MODEL is a folder as diffusers' ``save_pretrained`` writes it; the default is the bundled Fashion-MNIST model. For every
N and batch the script prints the seconds of all settings that a plan chooses from (from one jump, triangular Anderson
acceleration of memory 2), and those of ``auto``, including its own measurements. All settings take turns several times,
and the median counts, so that other load on the machine affects all of them alike. The script also prints the expected
rounds and evaluations, the plan with its reason, and how far the plan is from the best setting.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

import fixedpoint
from fixedpoint.chains import ChainProblem, Serial
from fixedpoint.chains.planning.plan import expected
from fixedpoint.chains.planning.planned import joint
from fixedpoint_diffusion import DiffusersModel, FashionMNISTModel
from fixedpoint_diffusion.task import Sampling

WINDOWS = (8, 16, 32, 64, 128)


def settings(problem: ChainProblem, windows: Sequence[int]) -> dict[str, fixedpoint.Solver]:
    """The settings that a plan chooses from, by name, and ``auto``, which chooses."""
    found: dict[str, fixedpoint.Solver] = {"step by step": Serial()}
    found |= {f"window {p}": joint(problem, p) for p in windows if p < problem.length}
    return found | {"whole chain": joint(problem), "auto": fixedpoint.Auto()}


def main(
    model: Annotated[Path | None, typer.Argument(help="Folder of a diffusers model; default: the bundled one.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="N, repeat for several; default: 25 100 1000.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Images, repeat for several; default: 1 16.")] = None,
    window: Annotated[list[int] | None, typer.Option(help="p, repeat for several; default: 8 16 32 64 128.")] = None,
    rtol: Annotated[float, typer.Option(help="Tolerance of the joint solves.")] = 1e-3,
    eta: Annotated[float, typer.Option(help="0: deterministic; 1: ancestral.")] = 0.0,
    repeats: Annotated[int, typer.Option(help="Times every setting is measured.")] = 3,
    most: Annotated[float, typer.Option(help="Seconds; settings that take longer are measured once.")] = 60.0,
    device: str = "cpu",
) -> None:
    """Print the tables."""
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}")
    network = FashionMNISTModel() if model is None else DiffusersModel(path=str(model))
    print("\n| N | batch | setting | seconds | rounds | expected | evaluations / N | expected |")
    print("|--:|--:|:--|--:|--:|--:|--:|--:|", flush=True)
    told = []
    for length in steps or [25, 100, 1000]:
        for rows in batch or [1, 16]:
            task = Sampling(model=network, num_inference_steps=length, eta=eta, batch=rows, device=device)
            problem = task.problem(0)
            assert isinstance(problem, ChainProblem)
            fixedpoint.solve(problem, solver=joint(problem), rtol=rtol, max_rounds=2)  # a warm-up
            seconds: dict[str, list[float]] = {}
            solved = {}
            for repeat in range(repeats):
                for name, solver in settings(problem, window or WINDOWS).items():
                    if repeat and seconds[name][0] > most:
                        continue
                    began = time.perf_counter()
                    solved[name] = fixedpoint.solve(problem, solver=solver, rtol=rtol)
                    float(solved[name].state[0, -1])
                    seconds.setdefault(name, []).append(time.perf_counter() - began)
                print(f"N = {length}, batch {rows}, repeat {repeat + 1}", file=sys.stderr, flush=True)
            median = {name: statistics.median(times) for name, times in seconds.items()}
            for name, solution in solved.items():
                work = solution.evaluations.mean() / length
                hoped = [""] * 2
                if "w" in name:
                    width = length if name == "whole chain" else int(name.split()[-1])
                    rounds, evaluations = expected(length, width, rtol)
                    hoped = [str(rounds), f"{evaluations / length:.2f}"]
                print(
                    f"| {length} | {rows} | {name} | {median[name]:.2f} | {solution.counts.rounds} | {hoped[0]} | "
                    f"{work:.2f} | {hoped[1]} |",
                    flush=True,
                )
            best = min((name for name in median if name != "auto"), key=median.__getitem__)
            told.append(
                f"N = {length}, batch {rows}: {solved['auto'].extras['plan']}; it took {median['auto']:.2f} s, "
                f"{median['auto'] / median[best]:.2f} of the best ({best}), "
                f"{median['auto'] / median['step by step']:.2f} of step by step"
            )
    print("\n" + "\n".join(told))


if __name__ == "__main__":
    torch.set_num_threads(2)
    typer.run(main)
