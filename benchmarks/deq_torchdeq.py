"""A training step of the digits classifier with the equilibrium layers of this library and of torchdeq.

    python benchmarks/deq_torchdeq.py [--epochs 6] [--seeds 2]

Both have the same cell, the same initial parameters, the same order of images, the implicit gradient, a relative
tolerance of 1e-2 in the forward and the adjoint solve, and at most 50 rounds of either. They run in one process with
one thread and take turns epoch by epoch. Held-out images are classified at the tolerance of the training.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torchdeq import get_deq

import fixedpoint
from fixedpoint.layers import EquilibriumLayer
from fixedpoint_deq.data import digits
from fixedpoint_deq.model import Cell, Classifier
from fixedpoint_deq.training import Recipe, Training

RTOL, LIMIT, CHANNELS = 1e-2, 50, 24


class Theirs(nn.Module):
    """A cell in the equilibrium layer of torchdeq."""

    def __init__(self, cell: nn.Module, solver: str) -> None:
        super().__init__()
        self.cell = cell
        self.layer = get_deq(
            f_solver=solver,
            b_solver=solver,
            f_max_iter=LIMIT,
            b_max_iter=LIMIT,
            f_tol=RTOL,
            b_tol=RTOL,
            f_stop_mode="rel",
            b_stop_mode="rel",
            ift=True,
        )

    def forward(self, x: Tensor, samples: Tensor | None = None) -> Tensor:
        """The fixed point."""
        found: Tensor = self.layer(lambda z: self.cell(z, x), torch.zeros_like(x))[0][-1]
        return found


def ours(solver: str) -> Callable[[nn.Module], nn.Module]:
    """A cell in the equilibrium layer of this library."""
    rule = fixedpoint.Termination(rtol=RTOL, max_rounds=LIMIT)
    return lambda cell: EquilibriumLayer(
        cell, solver=solver, training=rule, evaluation=rule, gradient=fixedpoint.Implicit(termination=rule),
        on_failure="ignore",
    )  # fmt: skip


BODIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ours, Anderson": ours("anderson"),
    "ours, Broyden": ours("broyden"),
    "ours, plain": ours("picard"),
    "torchdeq, Anderson": lambda cell: Theirs(cell, "anderson"),
    "torchdeq, Broyden": lambda cell: Theirs(cell, "broyden"),
    "torchdeq, plain": lambda cell: Theirs(cell, "fixed_point_iter"),
}


def trainings(seed: int, epochs: int) -> dict[str, Training]:
    """One training per layer, from the same parameters."""
    torch.manual_seed(seed)
    first = Classifier(EquilibriumLayer(Cell(CHANNELS)), CHANNELS)
    made = {}
    for name, body in BODIES.items():
        model = copy.deepcopy(first)
        model.body = body(model.body.cell)
        made[name] = Training(model, digits(seed % 5), Recipe(epochs=epochs, seed=seed))
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in BODIES}
    accuracies: dict[str, list[float]] = {name: [] for name in BODIES}
    for seed in range(asked.seeds):
        running = trainings(seed, asked.epochs)
        for number in range(1, asked.epochs + 1):
            for name, training in running.items():
                epoch = training.run_epoch(judge=number == asked.epochs)
                seconds[name].append(epoch.seconds / training.steps)
        for name, training in running.items():
            accuracies[name].append(training.accuracy())
    means = {name: float(np.mean(values)) for name, values in seconds.items()}
    print("| layer | milliseconds a step | of theirs with that solver | accuracy |")
    print("|:--|--:|--:|--:|")
    for name, mean in means.items():
        theirs = means[f"torchdeq, {name.split(', ')[1]}"]
        print(f"| {name} | {1000 * mean:.0f} | {mean / theirs:.2f} | {np.mean(accuracies[name]):.2%} |")


if __name__ == "__main__":
    main()
