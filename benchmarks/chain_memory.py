"""Memory of a chain that is too long to be stored: N = 1000 states of 3 x 256 x 256, in a window of 64.

    python benchmarks/chain_memory.py [--window 64 --memory 2 --rounds 25] [--chain 2m --accelerator secant]

Prints the peak of the resident size, beyond that of the process before the solve, in buffers of the size of the window,
and the limit: 2m + 8 such buffers. ``2m`` is DPM-Solver++ 2M with N = 100, whose recurrence remembers two pairs of
input and output, and whose limit is 3m + 8. The step, or the denoiser, is a toy that costs next to nothing; float32,
batch 1, triangular Anderson or block secants. Large tensors are returned to the system at once
(MALLOC_MMAP_THRESHOLD_), so that the peak is that of the tensors in use.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

import fixedpoint
from fixedpoint.chains import AffineChain, BlockSecant, Chain, ChainProblem


class Toy(Chain):
    """A slow relaxation with a little mixing of neighbours."""

    length = 1000

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return 0.999 * x + 1e-3 * mixed(x, index / self.length)


def mixed(x: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """A function of neighbours and of the place in the chain."""
    return torch.tanh(x.roll(1, -1) + share.to(x).view(-1, 1, 1, 1))


def toy(x0: torch.Tensor) -> ChainProblem:
    """A memoryless chain of 1000 steps."""
    return ChainProblem(Toy(), x0, keep="last", max_batch=4)


def multistep(x0: torch.Tensor) -> ChainProblem:
    """DPM-Solver++ 2M in 100 steps."""
    import diffusers

    from fixedpoint_diffusion import sampling_problem

    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction", solver_order=2)
    problem = sampling_problem(lambda x, timestep: mixed(x, timestep / 1000), scheduler, x0, num_inference_steps=100)
    assert isinstance(problem.chain, AffineChain)
    assert problem.chain.recurrence.history == 2
    return ChainProblem(problem.chain, problem.x0, keep="last", max_batch=4)


# The problem, and how many buffers a column of memory may take.
CHAINS: dict[str, tuple[Callable[[torch.Tensor], ChainProblem], int]] = {"toy": (toy, 2), "2m": (multistep, 3)}
ACCELERATORS: dict[str, Callable[[int], fixedpoint.Solver]] = {
    "anderson": lambda memory: fixedpoint.Anderson(memory=memory),
    "secant": lambda memory: BlockSecant(memory=memory),
}


def resident() -> int:
    """The resident size of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(
    window: int = 64,
    memory: int = 2,
    rounds: int = 25,
    chain: Annotated[str, typer.Option(help=", ".join(CHAINS))] = "toy",
    accelerator: Annotated[str, typer.Option(help=", ".join(ACCELERATORS))] = "anderson",
    threads: int = 2,
) -> None:
    """Print the peak."""
    if chain not in CHAINS or accelerator not in ACCELERATORS:
        raise typer.BadParameter(f"there are the chains {', '.join(CHAINS)}, and {', '.join(ACCELERATORS)}")
    torch.set_num_threads(threads)
    x0 = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    make, columns = CHAINS[chain]
    problem = make(x0)
    solver = fixedpoint.ChainSolver(window=window, accelerator=ACCELERATORS[accelerator](memory))
    fixedpoint.solve(problem, solver=solver, rtol=1e-3, max_rounds=1)  # what is imported and made once
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    solution = fixedpoint.solve(problem, solver=solver, rtol=1e-3, max_rounds=rounds)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    buffer = window * x0.numel() * x0.element_size()
    held, counted = peak - before, f"{solution.counts.rounds} rounds, {seconds:.0f} s"
    print(
        f"{chain}, {accelerator}, window {window}, m = {memory}: {held / 1e6:.0f} MB, {held / buffer:.1f} buffers of "
        f"{buffer / 1e6:.0f} MB, limit {columns}m + 8 = {columns * memory + 8}; {counted}"
    )


if __name__ == "__main__":
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") is None:  # glibc reads it when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"})
    typer.run(main)
