"""Warm starts, from the solutions of the same samples one epoch before, compared with starts from zero.

    python benchmarks/deq_warm_start.py [--epochs 16] [--seeds 2]

The digits classifier is trained with the implicit gradient, with the same initial parameters and order of images for
both. The script prints the rounds of the forward solves by epoch, and the accuracy on held-out images, which are solved
from zero in both cases. Numbers are means over the seeds.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import fixedpoint
from fixedpoint.plugin import Context
from fixedpoint_deq.task import DigitsDEQ

RTOL = 1e-2


def trained(warm: bool, seed: int, epochs: int) -> tuple[list[float], list[float], float]:
    """Rounds and evaluations per solve for every epoch, and the accuracy."""
    rule = fixedpoint.Termination(rtol=RTOL, max_rounds=50)
    context = Context(
        solver=fixedpoint.Anderson(),
        gradient=fixedpoint.Implicit(termination=rule),
        termination=rule,
        seed=seed,
    )
    torch.manual_seed(seed)
    training = DigitsDEQ(epochs=epochs, warm_start=warm).training(context)
    done = [training.run_epoch(judge=number == epochs) for number in range(1, epochs + 1)]
    means = [epoch.solves["training"].means() for epoch in done]
    return [each["rounds"] for each in means], [each["evaluations"] for each in means], done[-1].accuracy


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    found = {
        name: [trained(warm, seed, asked.epochs) for seed in range(asked.seeds)]
        for name, warm in (("from zero", False), ("warm", True))
    }
    rounds = {name: np.mean([row[0] for row in rows], axis=0) for name, rows in found.items()}
    work = {name: np.mean([row[1] for row in rows], axis=0) for name, rows in found.items()}
    print("| epoch | rounds from zero | warm | evaluations a row from zero | warm |")
    print("|--:|--:|--:|--:|--:|")
    for epoch in range(asked.epochs):
        cells = [f"{rounds[name][epoch]:.1f}" for name in rounds] + [f"{work[name][epoch]:.1f}" for name in work]
        print(f"| {epoch + 1} | " + " | ".join(cells) + " |")
    saved = [1 - table["warm"].sum() / table["from zero"].sum() for table in (rounds, work)]
    print(f"saved over the whole training: {saved[0]:.1%} of the rounds, {saved[1]:.1%} of the evaluations")
    for name, rows in found.items():
        accuracies = [row[2] for row in rows]
        print(f"accuracy {name}: {np.mean(accuracies):.2%} ({', '.join(f'{value:.2%}' for value in accuracies)})")


if __name__ == "__main__":
    main()
