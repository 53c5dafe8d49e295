"""Recurrent networks and Euler solves, all steps at once against one after another: rounds and seconds.

    python benchmarks/chain_sequences.py [--batch 4] [--length 64 --length 1024] [--plot FILE.png]

The chains are networks of 16 units with recurrent weights of spectral radius .9 and 1, and four vector fields over a
time of 2, in float64 on one thread. Each is solved to a relative tolerance of 1e-6 by plain rounds with every
preconditioner. The script prints rounds and seconds, and for comparison those of the serial solver and of code without
the library: torch.nn.RNN and GRU, or a loop over the field. The largest error of any state of a converged solve goes to
stderr.

A solve that is not done after ``--most`` rounds (400) is ended: Jacobi's rounds on an Euler solve of 4096 steps would
be 4096, with eight million steps in all. Rounds are counts; seconds are the smallest of three solves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import matplotlib.pyplot as plt
import torch
import typer
from matplotlib.lines import Line2D
from torch import Tensor

import fixedpoint
from fixedpoint import Solution
from fixedpoint.chains import ChainProblem
from fixedpoint_sequences import EulerChain, RecurrentChain
from fixedpoint_sequences.euler_task import EulerODE
from fixedpoint_sequences.fields import Decay, Lorenz, LotkaVolterra, VanDerPol
from fixedpoint_sequences.recurrent_task import RecurrentNetwork
from fixedpoint_sequences.task import SequenceTask

PRECONDITIONERS = ("zero", "identity", "diagonal", "jacobian")
TASKS: dict[str, Callable[[int, int], SequenceTask]] = {
    "tanh network, rho .9": lambda n, b: RecurrentNetwork(spectral_radius=0.9, length=n, batch=b),
    "tanh network, rho 1": lambda n, b: RecurrentNetwork(spectral_radius=1.0, length=n, batch=b),
    "GRU, rho 1": lambda n, b: RecurrentNetwork(cell="gru", spectral_radius=1.0, length=n, batch=b),
    "Lorenz": lambda n, b: EulerODE(field=Lorenz(), length=n, batch=b),
    "van der Pol": lambda n, b: EulerODE(field=VanDerPol(), length=n, batch=b),
    "Lotka-Volterra": lambda n, b: EulerODE(field=LotkaVolterra(), length=n, batch=b),
    "linear decay": lambda n, b: EulerODE(field=Decay(), length=n, batch=b),
}
DRAWN = {"tanh network, rho 1": "-", "van der Pol": (0, (4, 1.5))}
COLOURS = {
    "plain": "#23282e",
    "serial": "#80878f",
    **dict(zip(PRECONDITIONERS, ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=True)),
}
REPEATS, PATIENCE = 3, 2.0
T = TypeVar("T")
Found = dict[tuple[str, int, str], tuple[int | None, float]]


def main(
    length: Annotated[list[int] | None, typer.Option(help="N, repeat for several; default: 64 256 1024 4096.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences at once; the slowest one counts.")] = 1,
    most: Annotated[int, typer.Option(help="Largest number of rounds of a solve.")] = 400,
    seed: int = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw rounds and seconds into this file.")] = None,
) -> None:
    """Print the table."""
    lengths = length or [64, 256, 1024, 4096]
    found: Found = {}
    worst = 0.0
    for name, make in TASKS.items():
        for n in lengths:
            problem = make(n, batch).problem(seed)
            found[name, n, "plain"] = n, min(clocked(plain(problem.chain, problem.x0))[1] for _ in range(REPEATS))
            serial, seconds = timed(problem, "serial", None)
            found[name, n, "serial"] = n, seconds
            for kind in PRECONDITIONERS:
                solver = fixedpoint.ChainSolver(preconditioner=kind)
                solution, seconds = timed(problem, solver, min(most, n + 1))
                done = bool(solution.converged.all())
                found[name, n, kind] = solution.counts.rounds if done else None, seconds
                if done:
                    error = (solution.z - serial.z).norm(dim=2).amax(1) / serial.z.norm(dim=2).amax(1)
                    worst = max(worst, float(error.amax()))
            print(f"{name}, N = {n}", file=sys.stderr, flush=True)
    print(f"largest error of a state, relative to the largest state: {worst:.1e}", file=sys.stderr)
    print(f"| | N | plain | serial | {' | '.join(PRECONDITIONERS)} |\n|:--|--:|{'--:|' * (2 + len(PRECONDITIONERS))}")
    for name in TASKS:
        for n in lengths:
            cells = [said(found[name, n, kind], most) for kind in PRECONDITIONERS]
            seconds = " | ".join(f"{found[name, n, kind][1]:.2g} s" for kind in ("plain", "serial"))
            print(f"| {name} | {n} | {seconds} | {' | '.join(cells)} |")
    if plot is not None:
        draw(found, lengths, plot)


def timed(problem: ChainProblem, solver: str | fixedpoint.ChainSolver, limit: int | None) -> tuple[Solution, float]:
    """The solution, and the smallest time of several solves; of a single one if it takes long."""
    least = float("inf")
    for _ in range(REPEATS):
        solution, taken = clocked(lambda: fixedpoint.solve(problem, solver=solver, rtol=1e-6, max_rounds=limit))
        least = min(least, taken)
        if taken > PATIENCE or not solution.converged.all():
            break
    return solution, least


def clocked(act: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    with torch.no_grad():
        return act(), time.perf_counter() - began


def plain(chain: RecurrentChain | EulerChain, x0: Tensor) -> Callable[[], object]:
    """A function that runs the serial computation without this library."""
    if isinstance(chain, RecurrentChain):
        kind = torch.nn.GRU if isinstance(chain.cell, torch.nn.GRUCell) else torch.nn.RNN
        network = kind(chain.inputs.shape[2], x0.shape[1], batch_first=True, dtype=x0.dtype)
        network.load_state_dict({f"{key}_l0": value for key, value in chain.cell.state_dict().items()})
        return lambda: network(chain.inputs)
    lengths, times = chain.times.diff().tolist(), chain.times.to(x0).unsqueeze(1).expand(-1, len(x0))

    def loop() -> Tensor:
        x, states = x0, []
        for h, t in zip(lengths, times, strict=False):
            x = x + h * chain.field(x, t)
            states.append(x)
        return torch.stack(states, dim=1)

    return loop


def said(cell: tuple[int | None, float], most: int) -> str:
    rounds, seconds = cell
    return f"> {most}" if rounds is None else f"{rounds}, {seconds:.2g} s"


def draw(found: Found, lengths: list[int], file: Path) -> None:
    """Draw rounds and seconds over the length; a curve ends where a solve was ended early."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for panel, (axis, title) in enumerate(zip(axes, ("rounds", "seconds"), strict=True)):
        for name, dashes in DRAWN.items():
            for kind in COLOURS:
                points = [(n, found[name, n, kind]) for n in lengths if found[name, n, kind][0] is not None]
                axis.plot(
                    [n for n, _ in points],
                    [cell[panel] for _, cell in points],
                    color=COLOURS[kind],
                    linestyle=dashes,
                    marker="o",
                    markersize=4,
                    linewidth=1.6,
                )
        axis.set(xscale="log", yscale="log", xlabel="N, steps of the chain", title=title)
        axis.set_xticks(lengths, [str(n) for n in lengths])
        axis.minorticks_off()
        axis.grid(color="#d8dce1", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [Line2D([], [], color=colour, linewidth=2, label=kind) for kind, colour in COLOURS.items()]
    handles += [Line2D([], [], color="#23282e", linestyle=dashes, label=name) for name, dashes in DRAWN.items()]
    figure.legend(handles=handles, loc="outside right center", frameon=False, handlelength=3)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
