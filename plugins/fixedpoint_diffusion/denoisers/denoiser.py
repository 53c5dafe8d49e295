"""Denoisers: what predicts noise, image or velocity from a noisy image and its timestep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Denoiser"]


class Denoiser(ABC):
    """A model's prediction at a batch of noisy images, each with its own timestep and its own conditioning.

    Attributes
    ----------
    rows
        How many rows it has conditioning for; None: any number.
    """

    rows: int | None = None

    @abstractmethod
    def predict(
        self, x: Float[Tensor, "P *event"], timestep: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """The model's prediction.

        Parameters
        ----------
        x
            Noisy images, of any timesteps in any order.
        timestep
            Training timestep of each, ``0 .. T-1``.
        row
            Row of the batch each belongs to: selects its conditioning.
        """

    def quick_batch(self, device: torch.device) -> int | None:
        """How many images at once are quickest per image on a device; None: as many as there are."""
        return None

    def cost_key(self) -> tuple[object, Hashable]:
        """What its evaluations take their time by, and what else that depends on; see ``HasCostKey``."""
        return self, None
