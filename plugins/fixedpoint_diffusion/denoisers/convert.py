"""Whatever denoises, as a denoiser: networks, functions, and what is refused."""

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
        :class:`~fixedpoint_diffusion.NetworkDenoiser`); or any function ``g(x, timestep)``, whose arguments are
        given by position: images of any rows and steps in any order, so that what it is conditioned on row by row
        requires a ``NetworkDenoiser`` or a ``Denoiser``.

    Raises
    ------
    TypeError
        For anything else, whole pipelines, classes and names among it, and a function of other arguments.
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
