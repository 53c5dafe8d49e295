"""The digits classifier as a deep equilibrium model and as an explicit network of the same cell, on five splits.

    python benchmarks/deq_splits.py [--epochs 10]

Every image is held out once. The explicit network is the cell unrolled ten times, trained by backpropagation with the
same recipe, the same initial parameters and the same order of images.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import fixedpoint
from fixedpoint.plugin import Context
from fixedpoint_deq.data import SPLITS
from fixedpoint_deq.model import Classifier, Repeated
from fixedpoint_deq.task import DigitsDEQ
from fixedpoint_deq.training import Epoch, Training

RTOL, DEPTH = 1e-2, 10


def trained(split: int, epochs: int, explicit: bool) -> list[Epoch]:
    """Run one training, and return its epochs."""
    rule = fixedpoint.Termination(rtol=RTOL, max_rounds=50)
    context = Context(
        solver=fixedpoint.Anderson(), gradient=fixedpoint.Implicit(termination=rule), termination=rule, seed=split
    )
    torch.manual_seed(split)
    task = DigitsDEQ(split=split, epochs=epochs)
    training = task.training(context)
    if explicit:
        body = training.model.body
        model = Classifier(Repeated(body.cell, DEPTH), task.channels)
        model.load_state_dict(training.model.state_dict())
        training = Training(model, training.data, training.recipe)
    return [training.run_epoch(judge=number == epochs) for number in range(1, epochs + 1)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    asked = parser.parse_args()
    print("| network | " + " | ".join(f"split {split}" for split in range(SPLITS)) + " | mean | seconds a training |")
    print("|:--|" + "--:|" * (SPLITS + 2))
    for name, explicit in (("equilibrium, implicit gradient", False), (f"the cell {DEPTH} times over", True)):
        runs = [trained(split, asked.epochs, explicit) for split in range(SPLITS)]
        accuracies = [run[-1].accuracy for run in runs]
        seconds = float(np.mean([sum(epoch.seconds for epoch in run) for run in runs]))
        cells = [f"{value:.2%}" for value in (*accuracies, float(np.mean(accuracies)))]
        print(f"| {name} | " + " | ".join(cells) + f" | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
