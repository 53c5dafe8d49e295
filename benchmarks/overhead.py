"""The cost of a solver in addition to ``f``: its own time per round, relative to a memory copy, and its memory.

    python benchmarks/overhead.py                 the whole table
    python benchmarks/overhead.py --only 64x100000

Time is that between one return of ``f`` and its next call, the median over the rounds with a full memory, in float32.
The copy reads and writes ``2 m + 8`` states, the data that a round has to touch. Memory is the growth of the resident
size of another fresh process at its peak, in states; in that process the allocator returns every large tensor to the
system at once, so that memory cached for later is not counted. ``-`` means too small to be measured, or more than the
machine has. Requires torchdeq 0.1.0. Nothing else should run on the machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import typer
from torch import Tensor

SIZES = [(1, 1_000), (1, 100_000), (1, 1_000_000), (64, 1_000), (64, 10_000), (64, 100_000), (64, 1_000_000)]
ROUNDS = 12  # beyond the memory
METHODS = {
    "Anderson(5)": ("anderson", 5),
    "torchdeq Anderson(5)": ("torchdeq-anderson", 5),
    "Broyden(20)": ("broyden", 20),
    "torchdeq Broyden(20)": ("torchdeq-broyden", 20),
}


class Clocked:
    """A cheap map that converges slowly and records the times of its calls and returns."""

    def __init__(self, rows: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.slope = torch.rand(1, size, generator=generator) * 1.8 - 0.9
        self.offset = torch.randn(1, size, generator=generator)
        self.called: list[float] = []
        self.returned: list[float] = []

    def __call__(self, z: Tensor) -> Tensor:
        self.called.append(time.perf_counter())
        value = torch.sin(z).mul_(self.slope).add_(self.offset)  # it allocates nothing but its value
        self.returned.append(time.perf_counter())
        return value

    def between(self, skip: int) -> float:
        """The median time from a return to the next call."""
        pairs = zip(self.returned[skip:-1], self.called[skip + 1 :], strict=True)
        return statistics.median(later - earlier for earlier, later in pairs)


def runner(name: str, memory: int, rounds: int) -> Callable[[Clocked, Tensor], None]:
    def ours(f: Clocked, z: Tensor) -> None:
        import fixedpoint

        rule = fixedpoint.Termination(rtol=0.0, max_rounds=rounds, patience=rounds)
        fixedpoint.solve(f, z, solver={"name": name, "memory": memory}, termination=rule)

    def anderson(f: Clocked, z: Tensor) -> None:
        from torchdeq.solver import anderson_solver

        anderson_solver(f, z, max_iter=rounds, tol=1e-30, m=memory)

    def broyden(f: Clocked, z: Tensor) -> None:
        from torchdeq.solver import broyden_solver

        broyden_solver(f, z, max_iter=rounds, tol=1e-30, LBFGS_thres=memory)

    return {"torchdeq-anderson": anderson, "torchdeq-broyden": broyden}.get(name, ours)


def measured(name: str, memory: int, rows: int, size: int) -> dict[str, float]:
    """The solver's own milliseconds per round, and the peak memory in states, measured in this process."""
    f, z = Clocked(rows, size), torch.zeros(rows, size)
    runner(name, memory, 3)(
        Clocked(1, 8), torch.zeros(1, 8)
    )  # memory that is allocated at the first use does not belong to the solve
    before = peak()
    with torch.no_grad():
        runner(name, memory, memory + ROUNDS)(f, z)
    return {"ms": 1e3 * f.between(memory + 2), "states": (peak() - before) / (4 * rows * size)}


def peak() -> int:
    """Peak resident size of this process in bytes (not ``ru_maxrss``, which a process inherits from its parent)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def available() -> int:
    """The free memory, in bytes."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def copied(states: int, rows: int, size: int) -> float:
    """Milliseconds to copy a number of states; if there are many, a part of them is copied repeatedly."""
    held = max(min(states, int(2e9) // (4 * rows * size)), 1)
    source, target = torch.ones(held, rows, size), torch.empty(held, rows, size)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times) * states / held


def in_fresh_process(*arguments: str, **environment: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    found: dict[str, float] = json.loads(done.stdout) if done.returncode == 0 else {"ms": float("nan"), "states": 0.0}
    return found


def main(
    only: str = typer.Option("", help="One size, e.g. 64x100000."),
    method: str = typer.Option("", hidden=True),
    repeats: int = typer.Option(3, min=1, help="Processes for each number; the quickest counts."),
) -> None:
    """Print the table."""
    sizes = [tuple(map(int, only.split("x")))] if only else SIZES
    if method:
        print(json.dumps(measured(*METHODS[method], *sizes[0])))
        return
    print("| B x D | " + " | ".join(f"{name}: ms, copies, states" for name in METHODS) + " |")
    print("|:--|" + "--:|" * len(METHODS))
    for rows, size in sizes:
        cells = []
        for name, (_, memory) in METHODS.items():
            if (3 * memory + 12) * rows * size * 4 > available():  # slightly more than any solver takes
                cells.append("-")
                continue
            arguments = "--method", name, "--only", f"{rows}x{size}"
            ms = min(in_fresh_process(*arguments)["ms"] for _ in range(repeats))
            ratio = ms / copied(2 * memory + 8, rows, size)
            states = "-"
            if rows * size >= 1e6:
                states = f"{in_fresh_process(*arguments, MALLOC_MMAP_THRESHOLD_='100000')['states']:.1f}"
            cells.append(f"{ms:.3g}, {ratio:.2f}, {states}")
        print(f"| {rows} x {size} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
