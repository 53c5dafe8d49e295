"""Memory of a chain that is too long to be stored: N = 1000 states of 3 x 256 x 256, in a window of 64.

    python benchmarks/chain_memory.py [--window 64 --memory 2 --rounds 25]

Prints the peak of the resident size, beyond that of the process before the solve, in buffers of the size of the window,
and the limit of 2m + 8 such buffers and the image. The step is a toy that costs next to nothing; float32, batch 1,
triangular Anderson. Large tensors are returned to the system at once (MALLOC_MMAP_THRESHOLD_), so that the peak is that
of the tensors in use.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import torch
import typer

import fixedpoint
from fixedpoint.chains import Chain, ChainProblem


class Toy(Chain):
    """A slow relaxation with a little mixing of neighbours."""

    length = 1000

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        share = (index.to(x) / self.length).view(-1, 1, 1, 1)
        return 0.999 * x + 1e-3 * torch.tanh(x.roll(1, -1) + share)


def resident() -> int:
    """The resident size of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(window: int = 64, memory: int = 2, rounds: int = 25) -> None:
    """Print the peak."""
    x0 = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    problem = ChainProblem(Toy(), x0, keep="last", max_batch=4)
    solver = fixedpoint.ChainSolver(window=window, accelerator=fixedpoint.Anderson(memory=memory))
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
        f"window {window}, m = {memory}: {held / 1e6:.0f} MB, {held / buffer:.1f} buffers of {buffer / 1e6:.0f} MB, "
        f"limit 2m + 8 = {2 * memory + 8}; {counted}"
    )


if __name__ == "__main__":
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") is None:  # glibc reads it when a process begins
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"})
    torch.set_num_threads(2)
    typer.run(main)
