"""One image of an inversion by optimisation: its latent, its own optimiser, the best so far.

An optimiser may ask for the loss at more points than one a step (the line search of L-BFGS); points that were
evaluated in this step are not evaluated again.
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
    """A latent that goes downhill.

    Parameters
    ----------
    start
        Its first value, shape ``event``.
    optimiser
        Makes the optimiser of a parameter.

    Attributes
    ----------
    best, best_loss
        The latent of the smallest loss, and that.
    kept
        What the next evaluation starts from.
    calls, evaluations, products
        Of the network, so far; calls are those that wait for one another.
    stopped
        Why it goes no further; None while it does.
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
        """Loss and gradient at the latent as it is, if they were found in this step."""
        for latent, loss, gradient in self._seen:
            if torch.equal(latent, self.latent):
                return loss, gradient
        return None

    def learn(self, loss: float, gradient: Float[Tensor, "*event"]) -> None:
        """Loss and gradient at the latent as it is."""
        self._seen.append((self.latent.clone(), loss, gradient))

    def judge(self, loss: float, enough: float) -> None:
        """Keep the latent if it is the best, and stop where that is enough or nothing can follow."""
        if loss < self.best_loss:
            self.best, self.best_loss = self.latent.clone(), loss
        if not math.isfinite(loss):
            self.stopped = "not finite"
        elif loss < enough:
            self.stopped = "enough"

    def step(self, evaluate: Callable[[], None]) -> None:
        """One step of the optimiser.

        Parameters
        ----------
        evaluate
            Finds out loss and gradient at the latent as it is.
        """

        def closure() -> float:
            if self.known() is None:
                evaluate()
            known = self.known()
            assert known is not None
            self.latent.grad = known[1]
            return known[0]

        before = self.latent.clone()
        self.optimiser.step(closure)
        if torch.equal(before, self.latent):
            self.stopped = "stationary"
        found = self.known()
        self._seen.clear()
        if found is not None:
            self.learn(*found)

    def state(self) -> dict[str, Any]:
        """All it goes on from."""
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
        """Go on from there."""
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
