"""Kernels of a round on a device, and how often the host waits for it, for every solver and for a joint chain.

    python benchmarks/kernels.py                       counts, on the device of the tests that stands in for a GPU
    python benchmarks/kernels.py --device cuda         launches and seconds of a round as well, by torch.profiler

A kernel is one call through torch's dispatcher that works on a tensor of the device; views are none, and neither is
what the host computes. A copy to the host or from it is a kernel, too. A wait is a read or a copy for which the host
waits. Kernels of ``f`` are not counted. The count of a round is that of a solve, less that of a shorter one, divided by
the rounds between them; the most waits are those between any two evaluations in these rounds. The problem has 5 rows of
64 unknowns and does not converge meanwhile. The chain is DDIM in 25 steps of 3 rows of 12, float64.

The table of a CUDA device has not been run. Its launches are those that
``torch.profiler`` names, the network's included, and its seconds those between two synchronisations around the rounds.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from chain_operations import Operations
from devices import Cuda, Device
from stand_in import stand_in

import fixedpoint
from fixedpoint.chains import ChainProblem
from fixedpoint.chains.joint.solver import joint
from fixedpoint.core.layout import Layout
from fixedpoint.core.problem import HasTake, Problem
from fixedpoint_diffusion import DDIMSchedule, ddim_problem

ROWS, SIZE, STEPS = 5, 64, 25
# Of solves that end after so many rounds, the shorter of which has filled the memory.
FIRST, LAST = 12, 24
CHAIN_FIRST, CHAIN_LAST = 5, 10
SOLVERS: dict[str, tuple[Any, int | None]] = {
    "picard": ("picard", 20),
    "anderson": ({"name": "anderson", "memory": 5}, 40),
    "anderson, type I": ("anderson-type1", None),
    "broyden": ({"name": "broyden", "memory": 10}, None),
    "squarem": ("squarem", None),
    "aitken": ("aitken", None),
    "krylov": ({"name": "krylov", "memory": 10}, None),
    "newton-krylov": ("newton-krylov", None),
    "auto": ("auto", None),
}
CHAIN_LIMIT = 60


@dataclass(frozen=True)
class Round:
    """What a round costs beside ``f``."""

    kernels: float
    waits: int
    counts: Counter[str]


class Seen(Operations):
    """Counts kernels, of the device that stands in where there is one, and the waits of the host at every pause."""

    def __init__(self, device: Device | None) -> None:
        super().__init__()
        self.device = device
        self.waits: list[int] = []

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count: the problem is evaluated."""
        self.waits.append(0 if self.device is None else self.device.waits)
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = self.paused
        self.paused = known or not _on_device((args, kwargs or {}))
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.paused = known


def _on_device(value: Any) -> bool:
    """Whether a tensor, or a device that one is to be made on, is among arguments."""
    if isinstance(value, Tensor):
        return value.device.type != "cpu"
    if isinstance(value, torch.device):
        return value.type != "cpu"
    if isinstance(value, dict):
        return any(map(_on_device, value.values()))
    return isinstance(value, (tuple, list)) and any(map(_on_device, value))


class Slow(Problem, HasTake):
    """A map that contracts so little, and is so far from normal, that no solver is done within the rounds counted."""

    def __init__(self, device: str, rows: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        turned = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))[0]
        start = torch.randn(ROWS, SIZE, generator=generator, dtype=torch.float64)
        self.device = device
        self.slope = (0.9999 * turned).to(device)
        self.start = start.to(device) if rows is None else start.to(device)[rows]
        self.layout = Layout.of(self.start)
        self.seen: Seen | None = None

    def __call__(self, z: Tensor) -> Tensor:
        with nullcontext() if self.seen is None else self.seen.pause():
            return 1.0 + torch.sin(z @ self.slope)

    def initial(self) -> Tensor:
        return self.start

    def take(self, rows: Tensor) -> Slow:
        part = Slow(self.device, rows)
        part.seen = self.seen
        return part


class Free:
    """A denoiser that costs next to nothing, and with which a chain does not converge early."""

    def __init__(self) -> None:
        self.seen: Seen | None = None

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        with nullcontext() if self.seen is None else self.seen.pause():
            return torch.sin(3.0 * x)


def chain(denoiser: Free, device: str) -> ChainProblem:
    """DDIM without clipping."""
    start = torch.randn(3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    schedule = DDIMSchedule(prediction_type="v_prediction", clip_sample=False)
    return ddim_problem(denoiser, schedule, start, num_inference_steps=STEPS)


def counted(problem: Problem, network: Slow | Free, solver: Any, device: Device, first: int, last: int) -> Round:
    """The kernels and the most waits of the rounds after ``first``, up to ``last``."""
    fixedpoint.solve(problem, solver=solver, rtol=1e-14, max_rounds=2)  # what is made once
    found = []
    for rounds in (first, last):
        with torch.no_grad(), Seen(device) as seen:
            network.seen = seen
            solution = fixedpoint.solve(problem, solver=solver, rtol=1e-14, max_rounds=rounds)
            network.seen = None
        assert solution.counts.rounds == rounds, "the solve ended by itself"
        found.append(seen)
    short, long = (seen.counts for seen in found)
    waits = [after - before for before, after in pairwise(found[1].waits)]
    each = Counter({name: long[name] - short[name] for name in long})
    return Round(each.total() / (last - first), max(waits[first - 1 :]), each)


def timed(problem: Problem, solver: Any, first: int, last: int) -> tuple[float, float]:
    """Launches and seconds of a round on a CUDA device, the evaluation of ``f`` included. Not run so far."""
    from torch.profiler import ProfilerActivity, profile

    def solve(rounds: int) -> None:
        fixedpoint.solve(problem, solver=solver, rtol=1e-14, max_rounds=rounds)
        torch.cuda.synchronize()

    launches, seconds = [], []
    for rounds in (first, last):
        solve(rounds)
        begun = time.perf_counter()
        solve(rounds)
        seconds.append(time.perf_counter() - begun)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            solve(rounds)
        launches.append(sum(event.count for event in found.key_averages() if "LaunchKernel" in event.key))
    return (launches[1] - launches[0]) / (last - first), (seconds[1] - seconds[0]) / (last - first)


def table(device: Device, only: str = "", on_cuda: bool = False) -> Iterator[tuple[str, Round, int | None, str]]:
    """Every row: its name, its round, the limit on kernels, and what a CUDA device adds."""
    problem, denoiser = Slow(device.device), Free()
    sampled = chain(denoiser, device.device)
    cases: list[tuple[str, Problem, Slow | Free, Any, int | None, int, int]] = [
        (name, problem, problem, solver, limit, FIRST, LAST) for name, (solver, limit) in SOLVERS.items()
    ]
    cases.append(("chain, joint", sampled, denoiser, joint(sampled), CHAIN_LIMIT, CHAIN_FIRST, CHAIN_LAST))
    for name, each, network, solver, limit, first, last in cases:
        if only in name:
            more = ""
            if on_cuda:
                launches, seconds = timed(each, solver, first, last)
                more = f" {launches:.1f} | {1e6 * seconds:.0f} |"
            yield name, counted(each, network, solver, device, first, last), limit, more


def main(
    device: Annotated[str, typer.Option(help="standin or cuda.")] = "standin",
    only: Annotated[str, typer.Option(help="Solvers whose name contains this.")] = "",
    most: Annotated[int, typer.Option(help="So many of the most frequent kernels are named.")] = 0,
) -> None:
    """Print the table."""
    if device not in ("standin", "cuda"):
        raise typer.BadParameter(f"device must be standin or cuda, got {device}")
    on_cuda = device == "cuda"
    make: Callable[[], Any] = Cuda if on_cuda else stand_in
    more = (" launches with f | us with f |", "--:|--:|") if on_cuda else ("", "")
    print(f"| solver | kernels a round | limit | waits, at most |{more[0]}\n|:--|--:|--:|--:|{more[1]}")
    told = []
    with make() as there:
        for name, each, limit, added in table(there, only, on_cuda):
            print(f"| {name} | {each.kernels:.1f} | {limit or '-'} | {each.waits} |{added}", flush=True)
            told.append(f"{name}: " + ", ".join(f"{key} {number}" for key, number in each.counts.most_common(most)))
    print("\n" + "\n".join(told) if most else "", end="\n" if most else "")


if __name__ == "__main__":
    typer.run(main)
