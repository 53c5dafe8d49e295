r"""Networks as denoisers: conditioning row by row, classifier-free guidance, precision, micro-batches.

A network is called as ``diffusers`` calls its own: ``network(x, timestep, **conditioning)``, and gives a tensor, a
tuple that starts with one, or an object with a ``sample``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fixedpoint_diffusion.denoiser import Denoiser

__all__ = ["NetworkDenoiser"]

# Images at once. On a CPU the activations of more no longer stay in the cache; on a GPU more bring little.
_QUICK = {"cpu": 16, "cuda": 256}


class NetworkDenoiser(Denoiser):
    r"""A network, with conditioning and classifier-free guidance.

    With guidance of scale ``s`` the prediction is ``u + s (c - u)`` of the unconditional prediction ``u`` and the
    conditional one ``c`` (Ho & Salimans 2022, eq. 6, where ``s = 1 + w``); both are evaluated in one batch.

    Parameters
    ----------
    network
        A module called as ``network(x, timestep, **conditioning)``, in evaluation mode. It computes in the dtype of
        its parameters (bfloat16, say), whatever the dtype of the states. Where it gives twice the channels of its
        input, the second half is a learned variance and is left out.
    conditioning
        Keyword arguments of the network, each a tensor with one entry per row of the batch: ``class_labels`` of shape
        ``(B,)``, ``encoder_hidden_states`` of shape ``(B, length, channels)``.
    unconditional
        The same arguments for the unconditional prediction, one entry per row or one for all; wanted where
        ``guidance_scale`` is not 1.
    guidance_scale
        ``s``; 1: no guidance.

    Raises
    ------
    TypeError
        For a network that is no module, or conditioning that is no tensor.
    ValueError
        For a network in training mode, guidance without ``unconditional``, or conditioning of different lengths.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        conditioning: Mapping[str, Shaped[Tensor, "B *shape"]] | None = None,
        unconditional: Mapping[str, Shaped[Tensor, "B *shape"]] | None = None,
        guidance_scale: float = 1.0,
    ) -> None:
        if not isinstance(network, torch.nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
        if network.training:
            raise ValueError(
                "the network is in training mode, where dropout makes every evaluation another function; "
                "call network.eval() first"
            )
        self.network = network
        self.guidance_scale = guidance_scale
        self.conditioning = _per_row("conditioning", conditioning or {})
        self.rows = min((len(value) for value in self.conditioning.values()), default=None)
        self.unconditional: dict[str, Tensor] = {}
        if guidance_scale != 1.0:
            self.unconditional = self._unconditional(_per_row("unconditional", unconditional or {}))
        self._dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)

    def quick_batch(self, device: torch.device) -> int | None:
        """Sixteen images at once on a CPU, with guidance eight (each is evaluated twice)."""
        images = _QUICK.get(device.type)
        return images // 2 if images and self.unconditional else images

    def cost_key(self) -> tuple[object, Hashable]:
        """The network's, once or twice."""
        return self.network, bool(self.unconditional)

    def predict(
        self, x: Float[Tensor, "P *event"], timestep: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        given = _selected(self.conditioning, row, x.device)
        if not self.unconditional:
            return self._call(x, timestep, given)
        without = _selected(self.unconditional, row, x.device)
        both = {key: torch.cat([without[key], value]) for key, value in given.items()}
        free, guided = self._call(torch.cat([x, x]), torch.cat([timestep, timestep]), both).chunk(2)
        return free + self.guidance_scale * (guided - free)

    def _call(self, x: Tensor, timestep: Tensor, given: dict[str, Tensor]) -> Tensor:
        value = self.network(x if self._dtype is None else x.to(self._dtype), timestep, **given)
        value = _prediction(value).to(x.dtype)
        if value.ndim == x.ndim and value.shape[1] == 2 * x.shape[1]:
            # Networks that learn the variance, too, give it in the second half of the channels.
            value = value[:, : x.shape[1]]
        return value

    def _unconditional(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.conditioning:
            raise ValueError(f"guidance_scale = {self.guidance_scale:g} wants conditioning to guide by, got none")
        if set(values) != set(self.conditioning):
            raise ValueError(
                f"guidance_scale = {self.guidance_scale:g} wants unconditional values for "
                f"{', '.join(self.conditioning)}, got {', '.join(values) or 'none'}"
            )
        return {key: values[key].expand_as(wanted) for key, wanted in self.conditioning.items()}


def _per_row(name: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
    for key, value in values.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise TypeError(
                f"{name} {key!r} must be a tensor with one entry per row of the batch, got {type(value).__name__}"
                + (" of no dimension" if isinstance(value, Tensor) else "")
            )
    lengths = {key: len(value) for key, value in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name} must have one entry per row in every argument, got lengths {lengths}")
    return dict(values)


def _selected(values: dict[str, Tensor], row: Tensor, device: torch.device) -> dict[str, Tensor]:
    return {key: value.to(device)[row] for key, value in values.items()}


def _prediction(value: Any) -> Tensor:
    """The tensor in what a network returned."""
    value = getattr(value, "sample", value)
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise TypeError(f"a network must return a tensor, or an object with a sample, got {type(value).__name__}")
    return value
