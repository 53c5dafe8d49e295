"""Draws images forming over the rounds of a joint solve: a row per class, a column per round, last the serial chain.

python benchmarks/forming_images.py docs/assets/forming.png [--steps 100]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from recorded import record, serial

import fixedpoint
from fixedpoint_diffusion import FashionMNISTModel
from fixedpoint_diffusion.fashion_mnist import CLASSES
from fixedpoint_diffusion.task import Sampling

SHOWN = (1, 2, 3, 4, 5, 6, 8, 10, 12)


def main(
    out: Annotated[Path, typer.Argument(help="The picture to write (PNG).")],
    steps: Annotated[int, typer.Option(help="N, steps of the chain.")] = 100,
    seed: int = 0,
) -> None:
    """Solve, draw, and print the largest error of the rounds shown."""
    problem = Sampling(model=FashionMNISTModel(), num_inference_steps=steps, batch=len(CLASSES)).problem(seed)
    target = serial(problem)
    chain = record(problem, target, fixedpoint.ChainSolver(), max(SHOWN))
    columns = [("noise", problem.x0), *((f"{n}", chain.images[n - 1]) for n in SHOWN), (f"serial, {steps}", target)]
    draw(columns, out)
    for n in SHOWN:
        print(f"round {n}: relative error {float(chain.errors[n - 1].amax()):.1e} at worst")


def draw(columns: list[tuple[str, torch.Tensor]], out: Path) -> None:
    """Draw columns of pictures with headings, with the rows labelled by class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(columns[0][1])
    left, top, side = 1.15, 0.5, 0.62
    size = left + side * len(columns) + 0.25, top + side * rows + 0.1
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text((left + side) / size[0], 1 - 0.13 / size[1], "after round", fontsize=9, va="center")
    for column, (heading, images) in enumerate(columns):
        # A small gap between the columns of the rounds and that of the serial chain.
        x = left + side * column + (0.12 if column == len(columns) - 1 else 0.0)
        figure.text((x + side / 2) / size[0], 1 - 0.36 / size[1], heading, fontsize=9, ha="center", va="center")
        for row in range(rows):
            y = size[1] - top - side * (row + 1)
            axes = figure.add_axes((x / size[0], y / size[1], 0.95 * side / size[0], 0.95 * side / size[1]))
            axes.imshow(images[row, 0].clamp(-1, 1), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_axis_off()
    for row, name in enumerate(CLASSES[:rows]):
        y = size[1] - top - side * (row + 0.5)
        figure.text(0.05 / size[0], y / size[1], name, fontsize=9, va="center")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    torch.set_num_threads(2)
    typer.run(main)
