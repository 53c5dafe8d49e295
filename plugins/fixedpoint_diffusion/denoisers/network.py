r"""Networks as denoisers: conditioning row by row, classifier-free guidance, precision, micro-batches.

A network is called as ``diffusers`` calls its own, with images, timesteps and conditioning by their names in its
signature (``fixedpoint_diffusion.denoisers.calling``), and gives a tensor, a tuple that starts with one, or an object
with a ``sample``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint_diffusion.denoisers import conditioning as rowwise
from fixedpoint_diffusion.denoisers.calling import network_call
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.denoisers.networks import refusal

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
        A module of images and timesteps, in evaluation mode. The timesteps are given to its argument ``timestep``,
        ``timesteps``, ``time_step``, ``time_steps``, ``t`` or ``time``, wherever that stands in its signature, else to
        the second one. It computes in the dtype of its parameters (bfloat16, say), whatever the dtype of the states.
        Where it gives twice the channels of its input, the second half is a learned variance and is left out.
    conditioning
        Keyword arguments of the network, each a tensor with one entry per row of the batch: ``class_labels`` of shape
        ``(B,)``, ``encoder_hidden_states`` of shape ``(B, length, channels)``. Mappings of tensors, and tuples and
        lists of them, are as good: ``added_cond_kwargs={"text_embeds": ..., "time_ids": ...}``. None is none.
    unconditional
        The same arguments for the unconditional prediction, one entry per row or one for all; wanted where
        ``guidance_scale`` is not 1.
    guidance_scale
        ``s``, a finite number, the same for all rows; 1: no guidance.
    shared
        Further keyword arguments, the same for all rows: whatever the network takes, handed on whole at every call,
        whatever their size (tensors are brought to the device of the states). A mapping that is in ``conditioning``,
        too, is joined with it.

    Raises
    ------
    TypeError
        For a network that is no module, conditioning that is no tensor, or a guidance scale that is no number.
    ValueError
        For a network in training mode, one that requires more than it is given or does not know what it is given,
        guidance that is not finite or without ``unconditional``, and conditioning of different lengths.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        conditioning: Mapping[str, Any] | None = None,
        unconditional: Mapping[str, Any] | None = None,
        guidance_scale: float = 1.0,
        shared: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(network, torch.nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {refusal(network) or type(network).__name__}")
        if network.training:
            raise ValueError(
                "the network is in training mode, where dropout makes every evaluation another function; "
                "call network.eval() first"
            )
        _check_number("guidance_scale", guidance_scale)
        self.network = network
        self.guidance_scale = guidance_scale
        self.conditioning = rowwise.checked("conditioning", {} if conditioning is None else conditioning)
        self.rows = rowwise.rows_of(self.conditioning)
        rowwise.named("shared", {} if shared is None else shared)
        self.shared = dict(shared or {})
        self._network = network_call(network, rowwise.merged(self.conditioning, self.shared))
        self.unconditional: dict[str, Any] = {}
        if guidance_scale != 1.0:
            self.unconditional = self._unconditional(unconditional)
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
        given = rowwise.selected(self.conditioning, row, x.device)
        if not self.unconditional:
            return self._call(x, timestep, given)
        both = rowwise.paired(rowwise.selected(self.unconditional, row, x.device), given)
        free, guided = self._call(torch.cat([x, x]), torch.cat([timestep, timestep]), both).chunk(2)
        return free + self.guidance_scale * (guided - free)

    def _call(self, x: Tensor, timestep: Tensor, given: dict[str, Any]) -> Tensor:
        given = rowwise.merged(given, rowwise.whole(self.shared, x.device))
        value = self._network(x if self._dtype is None else x.to(self._dtype), timestep, given)
        value = _prediction(value).to(x.dtype)
        if value.ndim == x.ndim and value.shape[1] == 2 * x.shape[1]:
            # Networks that learn the variance, too, give it in the second half of the channels.
            value = value[:, : x.shape[1]]
        return value

    def _unconditional(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        values = rowwise.checked("unconditional", {} if given is None else given, one_for_all=True)
        scale = f"guidance_scale = {self.guidance_scale:g}"
        if not self.conditioning:
            raise ValueError(f"{scale} requires conditioning to guide by, got none")
        try:
            return rowwise.expanded(values, self.conditioning)
        except ValueError as error:
            raise ValueError(f"{scale}: {error}" if "must" in str(error) else f"{scale} {error}") from None


def _check_number(name: str, value: Any) -> None:
    scalar = isinstance(value, Real) or (isinstance(value, Tensor) and value.ndim == 0)
    if not scalar or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def _prediction(value: Any) -> Tensor:
    """The tensor in what a network returned."""
    value = getattr(value, "sample", value)
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise TypeError(f"a network must return a tensor, or an object with a sample, got {type(value).__name__}")
    return value
