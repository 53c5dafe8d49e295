"""The interface of denoisers, which predict noise, image or velocity from a noisy image and its timestep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = ["Denoiser"]


class Denoiser(ABC):
    """A model that predicts for a batch of noisy images, each with its own timestep and its own conditioning.

    Attributes
    ----------
    rows
        The number of rows that it has conditioning for; None: any number.
    """

    rows: int | None = None

    @abstractmethod
    def predict(
        self, x: Float[Tensor, "P *event"], timestep: Shaped[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """The model's prediction for noisy images, each at its own timestep.

        What is predicted (noise, image or v) is ``schedule.prediction_type`` of the schedule that the denoiser is used
        with: ``epsilon``, ``sample`` or ``v_prediction``. A prediction must not depend on the other images of the
        batch.

        Parameters
        ----------
        x
            Noisy images of shape ``(P, *event)``, of a floating-point dtype, at any timesteps in any order. For DDIM
            ``sqrt(ab) x0 + sqrt(1 - ab) eps`` with ``ab = schedule.alphas_cumprod[timestep]``.
        timestep
            The training timestep of each image, ``0 .. T-1``, shape ``(P,)``: int64 for DDIM, else in the dtype of the
            scheduler, whose timesteps may lie between those of the training.
        row
            The row of the batch that each image belongs to, shape ``(P,)``, int64; it selects the conditioning.

        Returns
        -------
        Tensor
            The predictions, with the shape and device of ``x``. A DDIM chain converts any other floating-point dtype to
            that of ``x``.
        """

    def quick_batch(self, device: torch.device) -> int | None:
        """The number of images per call that is fastest per image on a device; None: no limit."""
        return None

    def cost_key(self) -> tuple[object, Hashable]:
        """The object and a further key that determine the cost of an evaluation; see ``HasCostKey``."""
        return self, None
