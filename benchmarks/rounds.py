"""What a solver adds to a round, beside ``f``: CPU time and kernels, next to torchdeq, SciPy and jaxopt.

    python benchmarks/rounds.py                            the whole table, float64
    python benchmarks/rounds.py --dtype float32
    python benchmarks/rounds.py --only 1x1000 --method picard --method anderson

Time is that between one return of ``f`` and its next call, in microseconds of CPU time, the median over the rounds with
a full memory (of ``auto`` the rounds of its first turn). Many short solves of this library and of torchdeq are
interleaved in one process, and the ratio is the median of the ratios of neighbours, so that what else the machine does
meanwhile counts little. A kernel is one operation that torch dispatches, views apart, or one call of ``numpy.einsum``,
which sums over unknowns as kernels do. Compared are ``picard`` with torchdeq's simple iteration, ``broyden`` with its
Broyden's method, and all others with its Anderson acceleration. SciPy's Anderson and a compiled jaxopt are shown for
one row, where they are installed. ``--limits`` exits with 1 where a limit of the project is exceeded.

Requires torchdeq 0.1.
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from chain_operations import Operations
from torch import Tensor

import fixedpoint

ROUNDS = 32
SIZES = {"1x10": 40, "1x1000": 40, "64x1000": 12, "65536x8": 3}
"""Rows times unknowns, and how many solves of each library are timed."""
METHODS: dict[str, tuple[dict[str, Any], str, int]] = {
    # options, what it is compared with, and the first round that is timed
    "picard": ({}, "simple", 2),
    "anderson": ({"memory": 5}, "anderson", 7),
    "broyden": ({"memory": 20}, "broyden", 22),
    "squarem": ({}, "anderson", 4),
    "aitken": ({}, "anderson", 3),
    "anderson-type1": ({"memory": 5}, "anderson", 7),
    "auto": ({}, "anderson", 3),
}
# Ratios to torchdeq: at 1x10 and 1x1000, at 64x1000, at 65536x8; and kernels a round.
LIMITS = {
    "picard": (1.1, 1.0, 0.85, 6),
    "anderson": (1.4, 1.0, 0.85, 20),
    "broyden": (1.8, 1.0, 0.85, 45),
    "auto": (1.6, None, None, None),
}

Run = Callable[["Map", Tensor], None]


class Map:
    """A cheap contraction that mixes neighbours and converges slowly; it notes the CPU time of calls and returns."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        self.slope = (torch.rand(1, size, generator=generator, dtype=torch.float64) * 1.9 - 0.95).to(dtype)
        self.offset = torch.randn(1, size, generator=generator, dtype=torch.float64).to(dtype)
        self.called: list[float] = []
        self.returned: list[float] = []
        self.counter: Operations | None = None
        self.kernels: list[int] = []

    def __call__(self, z: Tensor) -> Tensor:
        if self.counter is not None:
            self.counter.paused = True
            self.kernels.append(sum(self.counter.counts.values()))
        self.called.append(time.process_time())
        value = (
            torch.sin(z).mul_(self.slope).add_(self.offset).add_(torch.roll(z, 1, -1).tanh_().mul_(0.3 * self.slope))
        )
        self.returned.append(time.process_time())
        if self.counter is not None:
            self.counter.paused = False
        return value

    def between(self, first: int) -> float:
        """The median time from a return to the next call, in microseconds, from the round ``first`` on."""
        pairs = list(zip(self.returned[:-1], self.called[1:], strict=True))[first - 1 :]
        return 1e6 * statistics.median(later - earlier for earlier, later in pairs)


def ours(name: str, options: dict[str, Any]) -> Run:
    """A solve of this library."""

    def solve(f: Map, z: Tensor) -> None:
        rule = fixedpoint.Termination(rtol=0.0, max_rounds=ROUNDS, patience=ROUNDS)
        fixedpoint.solve(f, z, solver={"name": name, **options}, termination=rule)

    return solve


def theirs(name: str, memory: int) -> Run:
    """A solve of torchdeq."""
    from torchdeq.solver import anderson_solver, broyden_solver, fixed_point_iter

    method, options = {
        "simple": (fixed_point_iter, {}),
        "anderson": (anderson_solver, {"m": memory}),
        "broyden": (broyden_solver, {"LBFGS_thres": memory}),
    }[name]
    return lambda f, z: method(f, z, max_iter=ROUNDS, tol=1e-30, **options)


@dataclass
class Row:
    """One line of the table."""

    method: str
    size: str
    microseconds: float
    theirs: float
    ratio: float
    kernels: int
    their_kernels: int


def measured(method: str, size: str, dtype: torch.dtype, solves: int) -> Row:
    """Time one method beside torchdeq's."""
    options, peer, first = METHODS[method]
    rows, unknowns = map(int, size.split("x"))
    start = torch.zeros(rows, unknowns, dtype=dtype)
    pair = ours(method, options), theirs(peer, options.get("memory", 5))
    times: list[list[float]] = [[], []]
    gc.disable()
    for _ in range(solves):
        for run, found in zip(pair, times, strict=True):
            f = Map(unknowns, dtype)
            run(f, start)
            found.append(f.between(first))
    gc.enable()
    kernels = [counted(run, Map(unknowns, dtype), start, first) for run in pair]
    ratio = statistics.median(one / other for one, other in zip(*times, strict=True))
    return Row(method, size, statistics.median(times[0]), statistics.median(times[1]), ratio, *kernels)


def counted(run: Run, f: Map, start: Tensor, first: int) -> int:
    """The median number of kernels between two evaluations."""
    own = np.einsum
    with Operations() as counter:
        f.counter = counter

        def einsum(*args: Any, **named: Any) -> Any:
            counter.counts["einsum"] += not counter.paused
            return own(*args, **named)

        np.einsum = einsum
        try:
            run(f, start)
        finally:
            np.einsum = own
    return int(statistics.median([later - earlier for earlier, later in pairwise(f.kernels)][first - 1 :]))


def others(size: str) -> list[tuple[str, float]]:
    """Microseconds a step of SciPy's Anderson and of a compiled jaxopt, where they are installed; for one row."""
    rows, unknowns = map(int, size.split("x"))
    found: list[tuple[str, float]] = []
    if rows > 1:
        return found
    f = Map(unknowns, torch.float64)
    try:
        import scipy.optimize

        def g(x: np.ndarray) -> np.ndarray:
            return f(torch.from_numpy(x).reshape(1, -1)).numpy()[0] - x

        with contextlib.suppress(scipy.optimize.NoConvergence):
            scipy.optimize.anderson(g, np.zeros(unknowns), M=5, f_tol=0.0, maxiter=ROUNDS, line_search=None)
        found.append(("scipy anderson(5)", f.between(7)))
    except ImportError:
        pass
    try:
        import jax
        import jaxopt

        jax.config.update("jax_enable_x64", True)
        slope, offset = (jax.numpy.asarray(each[0].numpy()) for each in (f.slope, f.offset))

        def contraction(z: Any) -> Any:
            return slope * jax.numpy.sin(z) + offset + 0.3 * slope * jax.numpy.tanh(jax.numpy.roll(z, 1))

        solver = jaxopt.AndersonAcceleration(contraction, history_size=5, maxiter=ROUNDS, tol=0.0)
        compiled = jax.jit(lambda z: solver.run(z).params)
        compiled(jax.numpy.zeros(unknowns)).block_until_ready()
        began = time.process_time()
        for _ in range(20):
            compiled(jax.numpy.zeros(unknowns)).block_until_ready()
        found.append(("jaxopt anderson(5), f included", 1e6 * (time.process_time() - began) / 20 / ROUNDS))
    except ImportError:
        pass
    return found


def exceeded(row: Row) -> list[str]:
    """The limits that a row exceeds."""
    limits = LIMITS.get(row.method)
    if limits is None:
        return []
    most = limits[{"1x10": 0, "1x1000": 0, "64x1000": 1, "65536x8": 2}[row.size]] if row.size in SIZES else None
    over = [f"ratio {row.ratio:.2f} > {most}"] if most is not None and row.ratio > most else []
    few = limits[3] if row.size in ("1x10", "1x1000") else None
    return over + ([f"{row.kernels} kernels > {few}"] if few is not None and row.kernels > few else [])


def main(
    only: Annotated[list[str] | None, typer.Option(help="A size, e.g. 64x1000; repeat for several.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="A method; repeat for several.")] = None,
    dtype: Annotated[str, typer.Option(help="float64 or float32.")] = "float64",
    solves: Annotated[int, typer.Option(min=0, help="Solves of each library; 0: as many as are usual.")] = 0,
    limits: Annotated[bool, typer.Option(help="Exit with 1 where a limit is exceeded.")] = False,
    save: Annotated[Path | None, typer.Option("--json", help="Save the table.")] = None,
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| B x D | method | us | torchdeq's | ratio | kernels | torchdeq's |\n|:--|:--|--:|--:|--:|--:|--:|")
    rows, wrong = [], []
    with torch.no_grad():
        for size in only or SIZES:
            for name in method or METHODS:
                row = measured(name, size, getattr(torch, dtype), solves or SIZES.get(size, 3))
                rows.append(row)
                print(
                    f"| {size.replace('x', ' x ')} | {name} | {row.microseconds:.0f} | {row.theirs:.0f} | "
                    f"{row.ratio:.2f} | {row.kernels} | {row.their_kernels} |",
                    flush=True,
                )
                wrong += [f"{name} at {size}: {each}" for each in exceeded(row)]
            for name, microseconds in others(size):
                print(f"| {size.replace('x', ' x ')} | {name} | {microseconds:.0f} | | | | |", flush=True)
    if save is not None:
        save.write_text(json.dumps([vars(row) for row in rows], indent=1))
    if limits:
        print("\n".join(wrong) or "All limits hold.")
        raise typer.Exit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
