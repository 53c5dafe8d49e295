"""``as_denoiser``: converts networks and functions to denoisers, and refuses everything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fixedpoint_diffusion.denoisers.calling import check_function
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.denoisers.network import NetworkDenoiser
from fixedpoint_diffusion.denoisers.networks import refusal

__all__ = ["as_denoiser"]


@dataclass(frozen=True)
class _Function(Denoiser):
    """A function ``g(x, timestep)`` as a denoiser."""

    function: Callable[[Tensor, Tensor], Any]

    def predict(self, x: Tensor, timestep: Tensor, row: Tensor) -> Tensor:
        value = self.function(x, timestep)
        if not isinstance(value, Tensor):
            raise TypeError(f"a denoiser must return a tensor, got {type(value).__name__}")
        return value


def as_denoiser(model: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any]) -> Denoiser:
    """The denoiser of a model.

    Parameters
    ----------
    model
        One of the following:

        - a :class:`Denoiser`, which is returned unchanged;
        - a network, which becomes an unconditional :class:`~fixedpoint_diffusion.NetworkDenoiser`;
        - a function ``g(x, timestep)``, called by position with images of shape ``(P, *event)`` and timesteps of shape
          ``(P,)``. One call may contain images of any rows and steps in any order. Conditioning per row therefore
          requires a ``NetworkDenoiser`` or a ``Denoiser``.

    Raises
    ------
    TypeError
        For anything else, such as whole pipelines, classes and names of models, and for a function that cannot be
        called with these arguments.
    ValueError
        For a network in training mode, or one that requires more than images and timesteps.
    """
    if isinstance(model, Denoiser):
        return model
    if isinstance(model, torch.nn.Module):
        return NetworkDenoiser(model)
    why = refusal(model)
    if why is not None:
        raise TypeError(f"a denoiser must be a function g(x, timestep) or a Denoiser, got {why}")
    check_function(model)
    return _Function(model)
