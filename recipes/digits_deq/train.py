"""Trains a deep equilibrium classifier of scikit-learn's digits and saves it.

    python recipes/digits_deq/train.py OUT [--epochs 10] [--solver anderson] [--gradient implicit] [--warm-start]

In the folder OUT the script writes ``checkpoint.safetensors`` after every epoch, ``log.jsonl`` with one line per epoch,
and at the end ``model.safetensors``. If a checkpoint is there, the same command continues from it, bit for bit on the
same machine.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file

from fixedpoint import Implicit, Termination
from fixedpoint.plugin import Context, registry
from fixedpoint_deq.task import DigitsDEQ
from fixedpoint_deq.training import Epoch, Training


def begin(
    epochs: int, split: int, seed: int, solver: str, gradient: str, rtol: float, warm_start: bool, dropout: float
) -> Training:
    """A new training."""
    rule = Termination(rtol=rtol, max_rounds=50)
    estimator = registry.create("gradient", gradient)
    if isinstance(estimator, Implicit):
        estimator = replace(estimator, termination=rule)
    context = Context(solver=registry.create("solver", solver), termination=rule, seed=seed, gradient=estimator)
    torch.manual_seed(seed)
    return DigitsDEQ(split=split, epochs=epochs, warm_start=warm_start, dropout=dropout).training(context)


def told(epoch: Epoch) -> str:
    """A line of text on an epoch."""
    row = epoch.row()
    line = f"epoch {epoch.number}: loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.2%}, {row['rounds']:.1f} rounds"
    return line + (f", {row['products']:.1f} products a step" if "products" in row else " a step")


def main(
    out: Annotated[Path, typer.Argument(help="Folder for checkpoint, log and model.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 10,
    split: Annotated[int, typer.Option(min=0, max=4, help="Which fifth of the images is held out.")] = 0,
    seed: int = 0,
    solver: Annotated[str, typer.Option(help="A registered solver.")] = "anderson",
    gradient: Annotated[str, typer.Option(help="A registered gradient estimator.")] = "implicit",
    rtol: Annotated[float, typer.Option(help="Relative tolerance of the solves and the adjoint solves.")] = 1e-2,
    warm_start: Annotated[bool, typer.Option(help="Start solves from the fixed points of the last epoch.")] = False,
    dropout: float = 0.0,
    stop_after: Annotated[int, typer.Option(help="Stop with a checkpoint after this many epochs in total.")] = 2**31,
) -> None:
    """Train, continuing from OUT/checkpoint.safetensors if it exists."""
    try:
        training = begin(epochs, split, seed, solver, gradient, rtol, warm_start, dropout)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.safetensors"
    console = Console()
    if checkpoint.exists():
        try:
            training.restore(checkpoint)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        console.print(f"going on from epoch {training.done}")
    columns = (TextColumn("epoch {task.fields[epoch]}, loss {task.fields[loss]}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        steps = training.steps
        bar = progress.add_task("", total=epochs * steps, completed=training.done * steps, epoch="", loss="")

        def advance(_: int, loss: float) -> None:
            progress.update(bar, advance=1, epoch=training.done + 1, loss=f"{loss:.3f}")

        while training.done < min(epochs, stop_after):
            epoch = training.run_epoch(advance)
            progress.console.print(told(epoch))
            training.save(checkpoint)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps({name: round(value, 6) for name, value in epoch.row().items()}) + "\n")
    if training.done < epochs:
        console.print(f"stopped after epoch {training.done} of {epochs}; the same command goes on")
        return
    save_file(
        {name: value.contiguous() for name, value in training.model.state_dict().items()}, out / "model.safetensors"
    )


if __name__ == "__main__":
    typer.run(main)
