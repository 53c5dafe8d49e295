"""Rounds and work of samplers of diffusers, solved jointly, to a given error.

    python benchmarks/sampler_rounds.py [--sampler 2m-20 --sampler unipc-20] [--solver auto --solver plain]

The model is the bundled one, four images of which the worst counts, float32. For every sampler the script prints the
number of network evaluations ``K`` of the serial run, the number ``q`` of pairs of input and output that its recurrence
remembers, and after how many sequential rounds the sample comes, and stays, within a relative error of 1e-1, 1e-2 and
1e-3 of the serial one's; next to it a limit where one is known, and the evaluations until then, in units of ``K``. The
solver ``auto`` is the joint one that ``auto`` plans with; the others evaluate every input in every round, too, and stop
at no tolerance. ``samplers.py`` describes the samplers.

The flow-shaped chain evaluates the bundled network through an exact change of coordinates, at float timesteps.
"""

from __future__ import annotations

import sys
import time
from typing import Annotated

import torch
import typer
from cells import Cell, cell_of
from chain_methods import Joint
from chain_rounds import evaluations, rounds
from recorded import serial
from samplers import Sampler, named

import fixedpoint
from fixedpoint.chains import BlockSecant, OneJumpStart
from fixedpoint.chains.joint.solver import joint

# None: the joint solver that ``auto`` plans with, which depends on the chain.
SOLVERS: dict[str, fixedpoint.Solver | None] = {
    "auto": None,
    "plain": fixedpoint.ChainSolver(),
    "secant": fixedpoint.ChainSolver(accelerator=BlockSecant(memory=1)),
    "secant-2": fixedpoint.ChainSolver(accelerator=BlockSecant(memory=2)),
    "jump+secant": fixedpoint.ChainSolver(accelerator=BlockSecant(memory=1), start=OneJumpStart()),
    "anderson": fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=2)),
}


def main(
    sampler: Annotated[list[str] | None, typer.Option(help="Repeat for several; default: all.")] = None,
    solver: Annotated[list[str] | None, typer.Option(help=f"{', '.join(SOLVERS)}; default: auto.")] = None,
    images: Annotated[int, typer.Option(help="Images; the worst one counts.")] = 4,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="Processor cores.")] = 2,
    device: str = "cpu",
) -> None:
    """Print the table."""
    torch.set_num_threads(threads)
    names = solver or ["auto"]
    if unknown := [name for name in names if name not in SOLVERS]:
        raise typer.BadParameter(f"no solver {', '.join(unknown)}; there are {', '.join(SOLVERS)}")
    try:
        chosen = named(sampler)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    print("| sampler | K | q | solver | 1e-1 / 1e-2 / 1e-3 | limit | within it | evaluations, in K |")
    print("|:--|--:|--:|:--|--:|--:|:--|--:|", flush=True)
    for each in chosen.values():
        problem = each.problem(images, seed, device=device)
        target = serial(problem)
        for name in names:
            began = time.perf_counter()
            with torch.no_grad():
                cell = cell_of(Joint(SOLVERS[name] or joint(problem))(problem, target))
            assert cell is not None
            history = each.tables().history
            print(f"| {each} | {problem.length} | {history or 'all'} | {name} | ", end="")
            print(f"{rounds(cell, 0)} | {verdict(each, cell)} | {evaluations(cell, problem.length)} |", flush=True)
            print(f"({each}, {name}: {time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)


def verdict(sampler: Sampler, cell: Cell) -> str:
    """The limit, and whether the counts are within it."""
    if sampler.limits is None:
        return "| "
    within = all(count is not None and count <= most for count, most in zip(cell.rounds, sampler.limits, strict=True))
    return f"{' / '.join(map(str, sampler.limits))} | {'yes' if within else 'no'}"


if __name__ == "__main__":
    typer.run(main)
