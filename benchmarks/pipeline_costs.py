"""What a round of a pipeline costs beside its network: Python, and memory.

    python benchmarks/pipeline_costs.py [--steps 50] [--scheduler DDIMScheduler --scheduler PNDMScheduler]
    python benchmarks/pipeline_costs.py --memory [--latents 32]

The pipeline is the tiny Stable Diffusion of the tests, random weights, float32, one image with guidance. The first
command prints for every form the milliseconds of CPU time that a round takes beside the calls of the network: replays,
merging, and the solver's own work, and after the plus sign what the scheduler's own steps take, which are arithmetic of
the sampler. In every round all steps are evaluated. The column "own" is what the pipeline's own loop takes for as many
steps, its network returning a constant, and "step" the part of that in the scheduler's steps. A round of the form
predictions takes all of the scheduler's steps twice, and the rest of the loop twice; one of steps takes both once, and
the rest once more; one of tables takes the rest twice. Numbers are those of the quickest of several runs.

The second prints the peak of the resident size beyond that before, from the making of the problem to the end of the
solve, in MB; that of one call of the network with as many rows as the largest merged batch; the limit of 1.3 times the
second and STATES buffers of the size of all states; and what remains of the first when 1.3 calls are taken off, in such
buffers. Every line is a process of its own. Large tensors are returned to the system at once
(MALLOC_MMAP_THRESHOLD_), so that peaks are those of tensors in use.

The buffers: the solver holds its unknowns, the predictions, the values that these imply, the network's inputs in a
round and in the last one, the predictions of the last one, a move and a miss of every prediction (its secant), and the
change that it proposes, nine; the check of the result holds the latest predictions and two rows of outputs each, three;
and what the networks are asked, or have returned for it, is two rows a step, two.
"""

from __future__ import annotations

import functools
import inspect
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
# What a solve holds beside a call of the network, in buffers of all states.
STATES = 9 + 3 + 2
SCHEDULERS = ("DDIMScheduler", "PNDMScheduler", "UniPCMultistepScheduler")
ROUNDS, REPEATS = 8, 4
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
        print("form         peak MB  call MB  limit MB  rest, in states")
        for form in FORMS:
            found = fresh(form, steps, latents)
            rest = (found["peak"] - 1.3 * found["call"]) / found["states"]
            sizes = "  ".join(
                f"{found[each] / 2**20:{width}.0f}" for each, width in zip(found, (7, 7, 8), strict=False)
            )
            print(f"{form:12} {sizes}  {rest:15.1f}", flush=True)
        return
    print(f"{'':24} " + " ".join(f"{form:>12}" for form in (*FORMS, "own", "step")) + "   ms a round")
    for name in scheduler or SCHEDULERS:
        cells = " ".join([*(cell(name, form, steps) for form in FORMS), *own(name, steps)])
        print(f"{name:24} {cells}", flush=True)


def made(
    scheduler: str, form: str, steps: int, size: int = 0, pipe: Any = None
) -> tuple[Any, ParallelPipeline, ChainProblem]:
    """The pipeline, its sampler and the problem of a call."""
    pipe = pipeline("sd1") if pipe is None else pipe
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


class Clock:
    """Adds up the CPU time of the calls of functions."""

    def __init__(self) -> None:
        self.spent = 0.0

    def of(self, function: Any) -> Any:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **given: Any) -> Any:
            began = time.process_time()
            result = function(*args, **given)
            self.spent += time.process_time() - began
            return result

        return timed


@torch.no_grad()
def cell(scheduler: str, form: str, steps: int) -> str:
    """Milliseconds of a round beside the network and the scheduler's steps, and of these."""
    network, taken, kind = Clock(), Clock(), getattr(diffusers, scheduler)
    own = kind.step
    kind.step = taken.of(own)  # of every copy
    try:
        pipe, _, problem = made(scheduler, form, steps)
        pipe.unet.forward = network.of(pipe.unet.forward)
        solved(problem, 3)
        found = []
        for _ in range(REPEATS):
            network.spent, taken.spent, began = 0.0, 0.0, time.process_time()
            solved(problem, ROUNDS)
            found.append((time.process_time() - began - network.spent - taken.spent, taken.spent))
    except ValueError:
        return f"{'-':>12}"
    finally:
        kind.step = own
    beside, inside = (1e3 * each / ROUNDS for each in min(found))
    return f"{f'{beside:.1f}+{inside:.1f}':>12}"


@torch.no_grad()
def own(scheduler: str, steps: int) -> list[str]:
    """Milliseconds of the pipeline's own loop beside the network, and of the scheduler's steps in it."""
    pipe, _, _ = made(scheduler, "predictions", steps)
    call = {**arguments("sd1"), "prompt": ["a cat"], "output_type": "latent"}
    output = torch.randn(2, *made_latents(pipe), generator=torch.Generator().manual_seed(0))
    pipe.unet.forward = lambda *_args, **_given: (output,)
    pipe.set_progress_bar_config(disable=True)
    step, clock = pipe.scheduler.step, Clock()

    def loop(count: int) -> tuple[float, float]:
        """Of the whole call, and of its steps."""
        found = []
        for _ in range(REPEATS):
            clock.spent, began = 0.0, time.process_time()
            inspect.unwrap(type(pipe).__call__)(pipe, **call, num_inference_steps=count)
            found.append((time.process_time() - began, clock.spent))
        return min(each[0] for each in found), min(each[1] for each in found)

    whole = loop(steps)[0] - loop(steps // 5)[0]  # without what is done before the loop
    pipe.scheduler.step = clock.of(step)
    return [f"{1e3 * each:12.1f}" for each in (whole * steps / (steps - steps // 5), loop(steps)[1])]


def made_latents(pipe: Any) -> tuple[int, int, int]:
    """The shape of the latents of an image."""
    size = arguments("sd1")["height"] // pipe.vae_scale_factor
    return pipe.unet.config.in_channels, size, size


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
    states = 4.0 * problem.x0.numel() * problem.length
    text = torch.zeros(ROWS, 77, pipe.unet.config.cross_attention_dim)
    solved(problem, 2)  # what is made once
    call = peak(lambda: pipe.unet(rows, torch.tensor(1), encoder_hidden_states=text))
    del problem
    whole = peak(lambda: solved(made("DDIMScheduler", form, steps, size, pipe)[2], ROUNDS))
    return {"peak": whole, "call": call, "limit": 1.3 * call + STATES * states, "states": states}


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
