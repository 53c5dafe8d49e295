"""Rounds and work of a DDIM chain to a given error, for this library's methods and published ones.

    python benchmarks/chain_rounds.py [MODEL] [--steps 25 --steps 50] [--eta 1 --steps 100] [--method jump+anderson]

MODEL is a folder as diffusers' ``save_pretrained`` writes it; the default is the bundled Fashion-MNIST model. The
script prints, for the worst of the images: after how many sequential rounds the image comes, and stays, within a
relative error of 1e-1, 1e-2 and 1e-3 of the serial chain's; the evaluations of the model per image until then, as
multiples of N; where methods ended that stop by themselves; and finally the conclusions, with their figures. A dash
means that the method ended before, or did not reach the error. ``chain_methods.py`` describes the methods.

Every cell is printed as soon as it is computed, and with ``--cells FILE`` it is stored, so that a long run continues
where it was interrupted. A file of cells belongs to one version of the library. Rounds are counts and hardly depend on
the machine.

The preconditioner zero needs nearly N rounds, two million evaluations for four images at N = 1000. Beyond 200 steps its
count is therefore computed without these rounds (``recorded.jacobi_rounds``).
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from cells import Cell, Store, cell_of
from chain_methods import METHODS
from recorded import serial
from torch import Tensor
from verdict import verdict

from fixedpoint.chains import ChainProblem
from fixedpoint_diffusion import DiffusersModel, FashionMNISTModel
from fixedpoint_diffusion.task import Sampling

LENGTHS = (25, 50, 100, 250, 1000)


def main(
    model: Annotated[Path | None, typer.Argument(help="Folder of a diffusers model; default: the bundled one.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="N, repeat for several; default: 25 50 100 250 1000.")] = None,
    eta: Annotated[float, typer.Option(help="0: deterministic; 1: ancestral.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Images; the worst one counts.")] = 4,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method; repeat for several; default: all.")
    ] = None,
    seed: int = 0,
    device: str = "cpu",
    cells: Annotated[
        Path | None, typer.Option(help="File that stores cells; cells in it are not computed again.")
    ] = None,
) -> None:
    """Print the tables."""
    names = method or list(METHODS)
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise typer.BadParameter(f"no method {', '.join(unknown)}; there are {', '.join(METHODS)}")
    network = FashionMNISTModel() if model is None else DiffusersModel(path=str(model))
    store = Store(cells)
    columns: dict[int, dict[str, Cell | None]] = {}
    for length in steps or LENGTHS:
        task = Sampling(model=network, num_inference_steps=length, eta=eta, batch=batch, device=device)
        chain = LazyChain(task, seed)
        columns[length] = {}
        for name in names:
            key = f"{task!r}, seed {seed}, {METHODS[name]!r}"
            cell = store.get(key, partial(chain.run, name))
            columns[length][name] = cell
            if cell is not None:
                print(f"N = {length}, eta = {eta:g}, {name}: {told(cell, length)}", file=sys.stderr, flush=True)
    print_tables(columns, names, f"eta = {eta:g}")


class LazyChain:
    """A chain and its serial result, computed when the first method is run on it."""

    def __init__(self, task: Sampling, seed: int) -> None:
        self.task, self.seed = task, seed
        self.made: tuple[ChainProblem, Tensor] | None = None

    def run(self, name: str) -> Cell | None:
        """Run a method."""
        if self.made is None:
            problem = self.task.problem(self.seed)
            assert isinstance(problem, ChainProblem)
            self.made = problem, serial(problem)
        began = time.perf_counter()
        with torch.no_grad():
            cell = cell_of(METHODS[name](*self.made))
        print(f"({name}: {time.perf_counter() - began:.0f} s)", file=sys.stderr, flush=True)
        return cell


def print_tables(columns: dict[int, dict[str, Cell | None]], names: list[str], title: str) -> None:
    """Print rounds, evaluations and ends, with one row per method and one column per chain; then the verdict."""
    parts = {"Rounds to 1e-1 / 1e-2 / 1e-3": rounds, "Evaluations an image, in N": evaluations, "Ended by itself": end}
    for heading, write in parts.items():
        rows = {name: [write(column[name], n) for n, column in columns.items()] for name in names}
        print(f"\n{heading}, {title}\n\n| method | {' | '.join(map(str, columns))} |\n|:--{'|--:' * len(columns)}|")
        for name, cells in rows.items():
            if any(cells):
                print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n{title}")
    for sentence in verdict(columns):
        print(sentence)


def rounds(cell: Cell | None, _: int) -> str:
    """To every tolerance."""
    return "" if cell is None else " / ".join("-" if count is None else str(count) for count in cell.rounds)


def evaluations(cell: Cell | None, length: int) -> str:
    """To every tolerance, in chain lengths."""
    if cell is None:
        return ""
    return " / ".join("-" if count is None else f"{count / length:.3g}" for count in cell.evaluations)


def end(cell: Cell | None, length: int) -> str:
    """Rounds, evaluations in chain lengths, and the error left."""
    if cell is None or cell.end is None:
        return ""
    return f"{cell.end.rounds}, {cell.end.evaluations / length:.3g}, {cell.end.error:.1e}"


def told(cell: Cell, length: int) -> str:
    """All of a cell."""
    ended = f"; ended by itself: {end(cell, length)}" if cell.end else ""
    return f"rounds {rounds(cell, length)}, evaluations {evaluations(cell, length)} N{ended}"


if __name__ == "__main__":
    typer.run(main)
