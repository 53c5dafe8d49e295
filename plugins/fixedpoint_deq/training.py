"""Trains a digits classifier epoch by epoch, with checkpoints from which training continues bit for bit.

Random numbers are a function of the seed and the epoch. A checkpoint therefore holds only the parameters, the state of
the optimiser and the number of epochs.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fixedpoint.config.checkpoint import load_checkpoint, save_checkpoint
from fixedpoint.layers import EquilibriumLayer, Statistics, jacobian_penalty
from fixedpoint_deq.data import Split
from fixedpoint_deq.model import Classifier

__all__ = ["Epoch", "Recipe", "Training"]

_RISE = 0.1  # share of the steps over which the learning rate rises


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training.

    Attributes
    ----------
    epochs
        Passes over the training images.
    batch
        Images per step. Images that do not fill a batch at the end of an epoch are left out.
    learning_rate
        The peak of the schedule of AdamW, which rises linearly over the first tenth of the steps and then falls along a
        cosine.
    weight_decay
        Weight decay of AdamW.
    clip
        Largest norm of the gradient; larger gradients are scaled down to it. The gradient of an equilibrium is large if
        its cell is barely a contraction.
    jacobian
        Weight of the Jacobian penalty, see ``fixedpoint.layers.jacobian_penalty``.
    seed
        Seed of the order of the images and of the random numbers of the layers.
    """

    epochs: int = 10
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    clip: float = 0.5
    jacobian: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """The record of one epoch.

    Attributes
    ----------
    number
        Number of the epoch, from 1.
    loss
        Mean loss of the steps: the cross entropy, plus the Jacobian penalty if it has a weight.
    accuracy
        Accuracy on the held-out images, 0 to 1; NaN if they were not classified.
    seconds
        Time of the steps.
    solves
        Statistics of the equilibrium layer in this epoch, by mode; empty for an explicit network.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float
    solves: Mapping[str, Statistics]

    def row(self) -> dict[str, float]:
        """The epoch as a flat mapping, for a log."""
        told = {"epoch": self.number, "loss": self.loss, "accuracy": self.accuracy, "seconds": self.seconds}
        for mode, statistics in self.solves.items():
            prefix = "held_out_" if mode == "evaluation" else ""
            told |= {prefix + name: value for name, value in statistics.means().items()}
        return told


class Training:
    """A training that is run epoch by epoch.

    Parameters
    ----------
    model
        The classifier.
    data
        Training images and held-out images.
    recipe
        The hyperparameters.
    setting
        Everything else that affects the training, by name, such as the solver. A checkpoint of another setting is
        refused.

    Raises
    ------
    ValueError
        If a batch is larger than the number of training images.
    """

    def __init__(
        self, model: Classifier, data: Split, recipe: Recipe, setting: Mapping[str, str] | None = None
    ) -> None:
        self.model, self.data, self.recipe = model, data, recipe
        self.setting = {name: str(value) for name, value in dataclasses.asdict(recipe).items()} | dict(setting or {})
        self.steps = len(data.images) // recipe.batch
        if not self.steps:
            raise ValueError(f"a batch of {recipe.batch} is more than the {len(data.images)} images to train on")
        self.optimiser = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.done = 0
        self.taken = 0

    def run_epoch(self, on_step: Callable[[int, float], None] | None = None, *, judge: bool = True) -> Epoch:
        """Train for one pass over the training images, then classify the held-out images.

        Parameters
        ----------
        on_step
            Called after every step with its number in the epoch, from 1, and its loss.
        judge
            Whether the held-out images are classified.
        """
        # A function of seed and epoch, so that a restored training draws the same numbers; trainings of different seeds
        # share none of their first 7919 epochs.
        seed = 7919 * self.recipe.seed + self.done
        order = torch.randperm(len(self.data.images), generator=torch.Generator().manual_seed(seed), device="cpu")
        solves = self._fresh_statistics()
        self.model.train()
        losses = []
        with torch.random.fork_rng():  # leaves the global generator of the caller unchanged
            torch.manual_seed(seed)
            began = time.perf_counter()
            for number, chosen in enumerate(order[: self.steps * self.recipe.batch].split(self.recipe.batch), start=1):
                losses.append(self.step(chosen))
                if on_step is not None:
                    on_step(number, losses[-1])
            seconds = time.perf_counter() - began
        for each in solves.values():
            each.collect()
        self.done += 1
        accuracy = self.accuracy() if judge else float("nan")
        return Epoch(self.done, sum(losses) / len(losses), accuracy, seconds, solves)

    def step(self, chosen: Tensor) -> float:
        """Take one step of the optimiser on the images with indices ``chosen``, and return the loss."""
        loss = self.loss(chosen)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        self.optimiser.step()
        self.taken += 1
        return float(loss.detach())

    def learning_rate(self) -> float:
        """The learning rate of the next step: it rises over the first tenth of the steps, then falls along a cosine."""
        share = (self.taken + 1) / (self.recipe.epochs * self.steps)
        risen = min(share / _RISE, 1.0)
        fallen = 0.5 * (1 + math.cos(math.pi * max(share - _RISE, 0.0) / (1 - _RISE)))
        return self.recipe.learning_rate * risen * fallen

    def loss(self, chosen: Tensor) -> Tensor:
        """The mean cross entropy of the images with indices ``chosen``, plus the weighted Jacobian penalty."""
        body = self.model.body
        warm = isinstance(body, EquilibriumLayer) and body.warm_start is not None
        images, labels = self.data.images[chosen], self.data.labels[chosen]
        if not (self.recipe.jacobian and isinstance(body, EquilibriumLayer)):
            return cross_entropy(self.model(images, samples=chosen if warm else None), labels)
        found = body.solve(self.model.inject(images), samples=chosen if warm else None)
        penalty = jacobian_penalty(found.f, found.z)
        return cross_entropy(self.model.head(found.z), labels) + self.recipe.jacobian * penalty

    @torch.no_grad()
    def accuracy(self) -> float:
        """The accuracy on the held-out images, 0 to 1."""
        self.model.eval()
        right = [
            self.model(images).argmax(dim=1) == labels
            for images, labels in zip(
                self.data.held_out_images.split(128), self.data.held_out_labels.split(128), strict=True
            )
        ]
        return float(torch.cat(right).double().mean())

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        state = {
            "epochs": self.done,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict()["state"],
        }
        save_checkpoint(path, self.setting, state)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        ValueError
            If the file is not a checkpoint, or is one of another recipe, setting or model.
        """
        state = load_checkpoint(path, self.setting, of="training")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(f"{path} belongs to another model: {error}") from None
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state["optimiser"], "param_groups": groups})
        self.done = state["epochs"]
        self.taken = self.done * self.steps

    def _fresh_statistics(self) -> dict[str, Statistics]:
        """New statistics, which the layer counts in from now on; empty for an explicit network."""
        body: nn.Module = self.model.body
        if not isinstance(body, EquilibriumLayer):
            return {}
        body.statistics = {mode: Statistics() for mode in body.statistics}
        return body.statistics
