"""What a round of a pipeline costs beside its network: Python, and memory.

    python benchmarks/pipeline_costs.py [--steps 50] [--scheduler DDIMScheduler --scheduler PNDMScheduler]
    python benchmarks/pipeline_costs.py --memory [--latents 32]

The pipeline is the tiny Stable Diffusion of the tests, random weights, float32, one image with guidance. The first
command prints for every form the milliseconds of CPU time that a round takes beside the calls of the network: replays,
merging, and the solver's own work. In every round all steps are evaluated.

The second prints the peak of the resident size during a solve beyond that before it, in MB; that of one call of the
network with as many rows as the largest merged batch; and what remains of the first when 1.3 times the second is taken
off, in buffers of the size of all states. Every line is a process of its own. Large tensors are returned to the system
at once (MALLOC_MMAP_THRESHOLD_), so that peaks are those of tensors in use.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
from tiny_pipelines import arguments, pipeline

import fixedpoint
from fixedpoint.chains import BlockSecant, ChainProblem, ChainSolver
from fixedpoint_diffusion import ParallelPipeline, parallel

FORMS = ("affine", "tables", "steps", "predictions")
SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "UniPCMultistepScheduler")
ROUNDS = 8
ROWS = 16


def main(
    steps: Annotated[int, typer.Option(help="num_inference_steps.")] = 50,
    scheduler: Annotated[list[str] | None, typer.Option(help="Repeat for several.")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Measure memory in place of time.")] = False,
    latents: Annotated[int, typer.Option(help="Height and width of the latents, for the memory.")] = 32,
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    if child:
        print(json.dumps(peaks(child, steps, latents)))
        return
    if memory:
        print("form         peak MB  call MB  rest, in states")
        for form in FORMS:
            found = fresh(form, steps, latents)
            rest = (found["peak"] - 1.3 * found["call"]) / found["states"]
            print(f"{form:12} {found['peak'] / 2**20:7.0f}  {found['call'] / 2**20:7.0f}  {rest:15.1f}")
        return
    print(f"{'':24} " + " ".join(f"{form:>12}" for form in FORMS) + "   ms a round")
    for name in scheduler or SCHEDULERS:
        print(f"{name:24} " + " ".join(cell(name, form, steps) for form in FORMS), flush=True)


def made(scheduler: str, form: str, steps: int, size: int = 0) -> tuple[Any, ParallelPipeline, ChainProblem]:
    """The pipeline, its sampler and the problem of a call."""
    pipe = pipeline("sd1")
    settings = {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **settings)
    call = {**arguments("sd1"), "prompt": ["a cat"], "num_inference_steps": steps}
    if size:
        call["height"] = call["width"] = size * pipe.vae_scale_factor
    sampler = parallel(pipe, form=form, max_batch=ROWS)
    return pipe, sampler, sampler.problem(generator=torch.Generator().manual_seed(0), **call)


def solved(problem: ChainProblem, rounds: int) -> fixedpoint.Solution:
    """A joint solve in which no state is left as it is."""
    solver = ChainSolver(accelerator=BlockSecant(), slack=0.0)
    return fixedpoint.solve(problem, solver=solver, rtol=1e-9, max_rounds=rounds)


@torch.no_grad()
def cell(scheduler: str, form: str, steps: int) -> str:
    """Milliseconds of a round beside the network."""
    try:
        pipe, _, problem = made(scheduler, form, steps)
    except ValueError:
        return f"{'-':>12}"
    network, spent = pipe.unet.forward, [0.0]

    def timed(*args: Any, **given: Any) -> Any:
        began = time.process_time()
        output = network(*args, **given)
        spent[0] += time.process_time() - began
        return output

    pipe.unet.forward = timed
    solved(problem, 3)
    spent[0], began = 0.0, time.process_time()
    solved(problem, ROUNDS)
    return f"{1e3 * (time.process_time() - began - spent[0]) / ROUNDS:12.1f}"


def fresh(form: str, steps: int, size: int) -> dict[str, float]:
    """The peaks, in a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", form, "--steps", str(steps), "--latents", str(size)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return found


@torch.no_grad()
def peaks(form: str, steps: int, size: int) -> dict[str, float]:
    """Bytes: the peak of a solve, that of one call of the network, and the size of all states."""
    pipe, _, problem = made("DDIMScheduler", form, steps, size)
    rows = problem.x0.expand(ROWS, -1, -1, -1).clone()
    text = torch.zeros(ROWS, 77, pipe.unet.config.cross_attention_dim)
    pipe.unet(rows, torch.tensor(1), encoder_hidden_states=text)  # what is made once
    call = peak(lambda: pipe.unet(rows, torch.tensor(1), encoder_hidden_states=text))
    solve = peak(lambda: solved(problem, ROUNDS))
    return {"peak": solve, "call": call, "states": 4.0 * problem.x0.numel() * problem.length}


def peak(run: Any) -> float:
    """By how many bytes the resident size rises at most while something runs."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here
    before = status("VmRSS")
    kept = run()
    del kept
    return float(status("VmHWM") - before)


def status(name: str) -> int:
    """A number of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(typer.run(main))
