"""One row of an inversion by optimisation: its latent, its own optimiser, and the best latent so far.

An optimiser may evaluate the loss at several points per step (the line search of L-BFGS does). A point is evaluated at
most once per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Descent", "Stop"]

Stop = Literal["enough", "stationary", "not finite", "steps"]


class Descent:
    """A latent and the optimiser that updates it.

    Parameters
    ----------
    start
        The initial latent, shape ``event``.
    optimiser
        A function that makes an optimiser for a list of parameters.

    Attributes
    ----------
    latent
        The current latent; the optimiser updates it in place.
    best, best_loss
        The latent with the smallest loss so far, and that loss.
    kept
        Tensors from the last evaluation, from which the next one starts.
    calls, evaluations, products
        Sequential calls of the network, evaluations and products so far.
    stopped
        Why the row stopped; None as long as it goes on.
    """

    def __init__(
        self, start: Float[Tensor, "*event"], optimiser: Callable[[list[Tensor]], torch.optim.Optimizer]
    ) -> None:
        self.latent = start.detach().clone()
        self.optimiser = optimiser([self.latent])
        self.best, self.best_loss = self.latent.clone(), math.inf
        self.kept: dict[str, Tensor] = {}
        self.calls = self.evaluations = self.products = 0
        self.stopped: Stop | None = None
        self._seen: list[tuple[Tensor, float, Tensor]] = []

    def known(self) -> tuple[float, Float[Tensor, "*event"]] | None:
        """Loss and gradient at the current latent, if they were evaluated in this step; else None."""
        # Compared by value: the line search of L-BFGS moves the latent in place, possibly back to an earlier point.
        for latent, loss, gradient in self._seen:
            if torch.equal(latent, self.latent):
                return loss, gradient
        return None

    def learn(self, loss: float, gradient: Float[Tensor, "*event"]) -> None:
        """Store loss and gradient at the current latent."""
        self._seen.append((self.latent.clone(), loss, gradient))

    def judge(self, loss: float, enough: float) -> None:
        """Keep the latent if its loss is the smallest; stop if the loss is below ``enough`` or not finite."""
        if loss < self.best_loss:
            self.best, self.best_loss = self.latent.clone(), loss
        if not math.isfinite(loss):
            self.stopped = "not finite"
        elif loss < enough:
            self.stopped = "enough"

    def step(self, evaluate: Callable[[], None]) -> None:
        """Take one step of the optimiser; the row stops if the step leaves the latent unchanged.

        Parameters
        ----------
        evaluate
            Evaluates loss and gradient at the current latent and stores them by :meth:`learn`.
        """

        def closure() -> float:
            if self.known() is None:
                evaluate()
            known = self.known()
            assert known is not None
            self.latent.grad = known[1]  # optimisers of torch read the gradient from here
            return known[0]

        before = self.latent.clone()
        self.optimiser.step(closure)
        if torch.equal(before, self.latent):
            self.stopped = "stationary"
        # Only the point that the step ends at can be asked for in the next step.
        found = self.known()
        self._seen.clear()
        if found is not None:
            self.learn(*found)

    def state(self) -> dict[str, Any]:
        """Everything that is needed to continue, for a checkpoint."""
        known = self.known()
        return {
            "latent": self.latent,
            "optimiser": self.optimiser.state_dict()["state"],
            "best": self.best,
            "best_loss": self.best_loss,
            "kept": self.kept,
            "spent": [self.calls, self.evaluations, self.products],
            "stopped": self.stopped,
            "known": None if known is None else list(known),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state that :meth:`state` returned."""
        # In place: the optimiser holds this tensor as its parameter.
        self.latent.copy_(state["latent"])
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state["optimiser"], "param_groups": groups})
        self.best.copy_(state["best"])
        self.best_loss = state["best_loss"]
        self.kept = {name: value.to(self.latent.device) for name, value in state["kept"].items()}
        self.calls, self.evaluations, self.products = state["spent"]
        self.stopped = state["stopped"]
        self._seen.clear()
        if state["known"] is not None:
            loss, gradient = state["known"]
            self.learn(loss, gradient.to(self.latent.device))
