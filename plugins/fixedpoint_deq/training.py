"""Training of a digits classifier: a step, an epoch, checkpoints that go on to the bit.

All randomness is a function of the seed and the epoch, so that a checkpoint holds parameters, the optimiser's state and
the number of epochs, and nothing else.
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

_RISE = 0.1


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained.

    Attributes
    ----------
    epochs
        Passes over the images.
    batch
        Images a step; the last few of an epoch are left out.
    learning_rate
        The largest of a schedule that rises over the first tenth and falls like a cosine (AdamW).
    weight_decay
        AdamW's.
    clip
        Norm that the gradient is cut down to. That of an equilibrium is large where its cell hardly contracts.
    jacobian
        Weight of the penalty on the Jacobian, see ``fixedpoint.layers.jacobian_penalty``.
    seed
        Of the order of the images and of what the layers draw.
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
    """What an epoch has come to.

    Attributes
    ----------
    number
        From 1.
    loss
        Mean loss of its steps: the cross entropy, and the penalty where there is one.
    accuracy
        Of held-out images, 0 to 1; NaN where none were classified.
    seconds
        Of its steps.
    solves
        The equilibrium layer's statistics in this epoch, by mode; of an explicit network none.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float
    solves: Mapping[str, Statistics]

    def row(self) -> dict[str, float]:
        """As one flat mapping, for a log."""
        told = {"epoch": self.number, "loss": self.loss, "accuracy": self.accuracy, "seconds": self.seconds}
        for mode, statistics in self.solves.items():
            prefix = "held_out_" if mode == "evaluation" else ""
            told |= {prefix + name: value for name, value in statistics.means().items()}
        return told


class Training:
    """A training under way.

    Parameters
    ----------
    model
        The classifier.
    data
        What it learns, and what it is tried on.
    recipe
        How.
    setting
        Whatever else makes it what it is, by name: the solver, say. A checkpoint of another setting is refused.
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
        """One pass over the images, and over those held out.

        Parameters
        ----------
        on_step
            Told of every step: its number in the epoch, from 1, and its loss.
        judge
            Whether the held-out images are classified.
        """
        seed = 7919 * self.recipe.seed + self.done
        order = torch.randperm(len(self.data.images), generator=torch.Generator().manual_seed(seed))
        solves = self._fresh_statistics()
        self.model.train()
        losses = []
        with torch.random.fork_rng():
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
        """One step of the optimiser on some of the images; its loss."""
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
        """Of the next step: rises over the first tenth of the steps, and falls like a cosine."""
        share = (self.taken + 1) / (self.recipe.epochs * self.steps)
        risen = min(share / _RISE, 1.0)
        fallen = 0.5 * (1 + math.cos(math.pi * max(share - _RISE, 0.0) / (1 - _RISE)))
        return self.recipe.learning_rate * risen * fallen

    def loss(self, chosen: Tensor) -> Tensor:
        """The mean cross entropy of some of the images, and the penalty."""
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
        """Of the held-out images."""
        self.model.eval()
        right = [
            self.model(images).argmax(dim=1) == labels
            for images, labels in zip(
                self.data.held_out_images.split(128), self.data.held_out_labels.split(128), strict=True
            )
        ]
        return float(torch.cat(right).double().mean())

    def save(self, path: Path) -> None:
        """Write a checkpoint, all of it or nothing."""
        state = {
            "epochs": self.done,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict()["state"],
        }
        save_checkpoint(path, self.setting, state)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        ValueError
            For a file that is no checkpoint, or that of another recipe, setting or model.
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
        """The layer counts from zero, in these."""
        body: nn.Module = self.model.body
        if not isinstance(body, EquilibriumLayer):
            return {}
        body.statistics = {mode: Statistics() for mode in body.statistics}
        return body.statistics
