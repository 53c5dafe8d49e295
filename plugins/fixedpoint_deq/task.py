"""The task ``digits-deq``: trains a deep equilibrium classifier with a solver and a gradient, and tests it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.options import OptionError, option
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.termination import Termination
from fixedpoint.layers import EquilibriumLayer, WarmStart, spectral_radius
from fixedpoint.tasks.task import Context, Result, Task
from fixedpoint_deq.data import digits
from fixedpoint_deq.model import Cell, Classifier
from fixedpoint_deq.training import Epoch, Recipe, Training

__all__ = ["DigitsDEQ", "bytes_saved"]


@dataclass(frozen=True)
class DigitsDEQ(Task):
    """Trains a convolutional deep equilibrium classifier on four fifths of 1797 handwritten digits and tests the rest.

    The solver, the termination and the gradient of the run are used in training. Held-out images are solved for by the
    same solver. The seed determines the initial parameters and the order of the images. Rounds, evaluations and seconds
    are those of the whole training; statuses and the convergence curve are those of held-out images after the last
    epoch.
    """

    split: int = option(0, ge=0, le=4, help="which fifth of the images is held out")
    channels: int = option(24, ge=4, help="channels of the state, 8 x 8 each; a multiple of 4")
    epochs: int = option(10, ge=1, help="passes over the images")
    batch: int = option(64, ge=1, help="images per step")
    learning_rate: float = option(3e-3, gt=0.0, help="peak of the learning-rate schedule")
    weight_decay: float = option(1e-2, ge=0.0, help="weight decay of AdamW")
    clip: float = option(0.5, gt=0.0, help="largest norm of the gradient of a step")
    dropout: float = option(
        0.0, ge=0.0, lt=1.0, help="share of the channels of the cell dropped, the same ones during a solve"
    )
    jacobian: float = option(0.0, ge=0.0, help="weight of the Jacobian penalty")
    warm_start: bool = option(False, help="start solves from the fixed points of the last epoch")
    held_out_rtol: float = option(1e-3, gt=0.0, lt=1.0, help="relative tolerance for the held-out images")

    uses = ("scikit-learn",)

    def check(self) -> None:
        if self.channels % 4:
            raise OptionError(type(self).__name__, "channels", f"must be a multiple of 4, got {self.channels}")

    def run(self, context: Context) -> Result:
        torch.manual_seed(context.seed)
        training = self.training(context)
        layer = training.model.body
        assert isinstance(layer, EquilibriumLayer)
        saved = bytes_saved(lambda: training.loss(torch.arange(self.batch, device="cpu")))
        epochs = [training.run_epoch(_telling(training, layer, context)) for _ in range(self.epochs)]
        solution, radius = _tried(training)
        solves = [epoch.solves["training"] for epoch in epochs]
        return Result(
            metrics=_metrics(epochs, saved, radius),
            status={status.label: count for status, count in sorted(Counter(solution.status).items())},
            rounds=sum(each.rounds for each in solves),
            evaluations=sum(each.evaluations for each in solves),
            seconds=sum(epoch.seconds for epoch in epochs),
            trace={
                "relative_error": solution.trace.relative,
                "relative_error.rounds": solution.trace.rounds,
            },
            epochs=_history(epochs),
            message=f"of the last held-out images: {solution.message}",
        )

    def training(self, context: Context) -> Training:
        """A new training with the solver, gradient, termination and seed of the context."""
        layer = EquilibriumLayer(
            Cell(self.channels, self.dropout),
            solver=context.solver,
            gradient=context.gradient,
            training=context.termination,
            evaluation=Termination(rtol=self.held_out_rtol, max_rounds=200),
            warm_start=self._warm_start() if self.warm_start else None,
            on_failure="ignore",  # failed solves are counted in the record
        )
        recipe = Recipe(
            epochs=self.epochs,
            batch=self.batch,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            clip=self.clip,
            jacobian=self.jacobian,
            seed=context.seed,
        )
        setting = {
            "solver": repr(context.solver),
            "gradient": repr(context.gradient),
            "termination": repr(context.termination),
            "task": repr(self),
        }
        return Training(Classifier(layer, self.channels), digits(self.split), recipe, setting)

    def _warm_start(self) -> WarmStart:
        return WarmStart(len(digits(self.split).images), self.channels * 64, persistent=True)


def _telling(training: Training, layer: EquilibriumLayer, context: Context) -> Callable[[int, float], None] | None:
    """A callback that reports every step: the rounds of this epoch so far, and the largest error of its solves."""
    tell = context.on_round
    if tell is None:
        return None

    def on_step(_step: int, _loss: float) -> None:
        solves = layer.statistics["training"]
        tell(Progress(round=solves.rounds, running=training.recipe.batch, relative_error=solves.error))

    return on_step


def bytes_saved(compute: Any) -> int:
    """The bytes that autograd stores for the backward pass of ``compute()``, counting every storage once."""
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor  # kept alive, so that no address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def _tried(training: Training) -> tuple[Solution, float]:
    """The solve of 64 held-out images, and the largest spectral radius of the cell at their fixed points."""
    model = training.model.eval()
    layer = model.body
    assert isinstance(layer, EquilibriumLayer)
    with torch.no_grad():
        found = layer.solve(model.inject(training.data.held_out_images[:64]))
    return found.solution, float(spectral_radius(found.f, found.z, rtol=1e-2, max_products=60).value.max())


def _metrics(epochs: list[Epoch], saved: int, radius: float) -> dict[str, float]:
    last = epochs[-1]
    solves = [epoch.solves["training"] for epoch in epochs]
    steps, rows = sum(each.solves for each in solves), sum(each.rows for each in solves)
    return {
        "accuracy": last.accuracy,
        "loss": last.loss,
        "rounds_a_step": sum(each.rounds for each in solves) / steps,
        "products_a_step": sum(each.products for each in solves) / rows,
        "seconds_a_step": sum(epoch.seconds for epoch in epochs) / steps,
        "saved_mb": saved / 2**20,
        "unsolved": sum(each.unsolved for each in solves) / rows,
        "adjoint_unsolved": sum(each.adjoint_unsolved for each in solves) / rows,
        "held_out_rounds": last.solves["evaluation"].means()["rounds"],
        "spectral_radius": radius,
    }


def _history(epochs: list[Epoch]) -> dict[str, NDArray[np.number[Any]]]:
    """The measurements of every epoch, by name."""
    rows = [epoch.row() for epoch in epochs]
    names = [name for name in ("accuracy", "loss", "rounds", "products") if name in rows[0]]
    return {name: np.array([row[name] for row in rows]) for name in names}
