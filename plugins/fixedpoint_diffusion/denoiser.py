"""Denoisers: what predicts noise, image or velocity from a noisy image and its timestep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint_diffusion.calling import check_function
from fixedpoint_diffusion.networks import refusal

__all__ = ["Denoiser", "as_denoiser"]


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


@dataclass(frozen=True)
class _Function(Denoiser):
    function: Callable[[Tensor, Tensor], Any]

    def predict(self, x: Tensor, timestep: Tensor, row: Tensor) -> Tensor:
        value = self.function(x, timestep)
        if not isinstance(value, Tensor):
            raise TypeError(f"a denoiser must return a tensor, got {type(value).__name__}")
        return value


def as_denoiser(model: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any]) -> Denoiser:
    """A denoiser of whatever denoises.

    Parameters
    ----------
    model
        A :class:`Denoiser`, returned as it is; a network, as ``diffusers`` calls them (an unconditional
        :class:`~fixedpoint_diffusion.network.NetworkDenoiser`); or any function ``g(x, timestep)``, whose arguments are
        given by position: images of any rows and steps in any order, so that what it is conditioned on row by row wants
        a ``NetworkDenoiser`` or a ``Denoiser``.

    Raises
    ------
    TypeError
        For anything else, whole pipelines, classes and names among it, and a function of other arguments.
    ValueError
        For a network in training mode, or one that wants more than images and timesteps.
    """
    if isinstance(model, Denoiser):
        return model
    if isinstance(model, torch.nn.Module):
        from fixedpoint_diffusion.network import NetworkDenoiser

        return NetworkDenoiser(model)
    why = refusal(model)
    if why is not None:
        raise TypeError(f"a denoiser must be a function g(x, timestep) or a Denoiser, got {why}")
    check_function(model)
    return _Function(model)
