r"""Networks as denoisers, with conditioning per row, classifier-free guidance and a dtype of their own.

A network is called as ``diffusers`` calls its own: with images, timesteps and conditioning under the names in its
signature (``fixedpoint_diffusion.denoisers.calling``). It returns a tensor, a tuple that starts with one, or an object
with an attribute ``sample``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fixedpoint_diffusion.denoisers import conditioning as rowwise
from fixedpoint_diffusion.denoisers.calling import network_call
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.denoisers.guidance import GuidanceScale, check_scale, combined, guides
from fixedpoint_diffusion.denoisers.networks import refusal

__all__ = ["NetworkDenoiser"]

# Images per call. On a CPU, the activations of more images no longer fit the cache; on a GPU, more images gain little.
_QUICK = {"cpu": 16, "cuda": 256}


class NetworkDenoiser(Denoiser):
    r"""The denoiser of a network, with conditioning and classifier-free guidance.

    With guidance scale ``s`` the prediction is ``u + s (c - u)``, with the unconditional prediction ``u`` and the
    conditional prediction ``c`` (Ho & Salimans 2022, eq. 6, where ``s = 1 + w``). Both are evaluated in one batch.

    Parameters
    ----------
    network
        A module of images and timesteps, in evaluation mode. The timesteps are passed as its argument ``timestep``,
        ``timesteps``, ``time_step``, ``time_steps``, ``t`` or ``time``, at any position in its signature; if it has
        none of these, they are passed as the second argument. It computes in the dtype of its parameters (for example
        bfloat16), whatever the dtype of the states. If it returns twice as many channels as its input has, the second
        half is a learned variance and is ignored.
    conditioning
        Keyword arguments of the network, each a tensor with one entry per row of the batch: ``class_labels`` of shape
        ``(B,)``, ``encoder_hidden_states`` of shape ``(B, length, channels)``. Mappings, tuples and lists of tensors
        are allowed as well: ``added_cond_kwargs={"text_embeds": ..., "time_ids": ...}``. A value of None is passed on
        as None. Default: no conditioning.
    unconditional
        The same arguments for the unconditional prediction, with one entry per row or one for all rows. Required if
        ``guidance_scale`` is not 1 or requires a gradient.
    guidance_scale
        ``s``, a finite number or tensor of no dimension, the same for all rows; 1 means no guidance. Where it is a
        tensor that requires a gradient, predictions have one with respect to it.
    shared
        Further keyword arguments of the network, passed on whole at every call, whatever their size. Tensors are moved
        to the device of the states. A mapping that also occurs in ``conditioning`` is merged with it.

    Raises
    ------
    TypeError
        If ``network`` is not a module, if a value of ``conditioning`` is not a tensor, or if ``guidance_scale`` is not
        a number.
    ValueError
        If the network is in training mode, requires arguments that are not given, or does not take one that is given;
        if ``guidance_scale`` is not finite, or guides without ``unconditional``; or if the tensors of ``conditioning``
        have different lengths.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        conditioning: Mapping[str, Any] | None = None,
        unconditional: Mapping[str, Any] | None = None,
        guidance_scale: GuidanceScale = 1.0,
        shared: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(network, torch.nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {refusal(network) or type(network).__name__}")
        if network.training:
            raise ValueError(
                "the network is in training mode, where dropout makes every evaluation another function; "
                "call network.eval() first"
            )
        check_scale(guidance_scale)
        self.network = network
        self.guidance_scale = guidance_scale
        self.conditioning = rowwise.checked("conditioning", {} if conditioning is None else conditioning)
        self.rows = rowwise.rows_of(self.conditioning)
        rowwise.named("shared", {} if shared is None else shared)
        self.shared = dict(shared or {})
        self._network = network_call(network, rowwise.merged(self.conditioning, self.shared))
        self.unconditional: dict[str, Any] = {}
        if guides(guidance_scale):
            self.unconditional = self._unconditional(unconditional)
        self._dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)

    def quick_batch(self, device: torch.device) -> int | None:
        """16 images on a CPU and 256 on a CUDA device; half of that with guidance, which evaluates each image twice."""
        images = _QUICK.get(device.type)
        return images // 2 if images and self.unconditional else images

    def cost_key(self) -> tuple[object, Hashable]:
        """The network, and whether guidance evaluates every image twice."""
        return self.network, bool(self.unconditional)

    def predict(
        self, x: Float[Tensor, "P *event"], timestep: Shaped[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        given = rowwise.selected(self.conditioning, row, x.device)
        if not self.unconditional:
            return self._call(x, timestep, given)
        # The unconditional and the conditional predictions come from one call of twice the batch.
        both = rowwise.paired(rowwise.selected(self.unconditional, row, x.device), given)
        free, guided = self._call(torch.cat([x, x]), torch.cat([timestep, timestep]), both).chunk(2)
        return combined(free, guided, self.guidance_scale)

    def _call(self, x: Tensor, timestep: Tensor, given: dict[str, Any]) -> Tensor:
        """The prediction of the network, in the dtype of ``x``."""
        given = rowwise.merged(given, rowwise.whole(self.shared, x.device))
        value = self._network(x if self._dtype is None else x.to(self._dtype), timestep, given)
        value = _prediction(value).to(x.dtype)
        if value.ndim == x.ndim and value.shape[1] == 2 * x.shape[1]:
            # Networks that also learn the variance return it in the second half of the channels.
            value = value[:, : x.shape[1]]
        return value

    def _unconditional(self, given: Mapping[str, Any] | None) -> dict[str, Any]:
        """The unconditional values with one entry per row, checked against the conditioning."""
        values = rowwise.checked("unconditional", {} if given is None else given, one_for_all=True)
        scale = f"guidance_scale = {self.guidance_scale:g}"
        if not self.conditioning:
            raise ValueError(f"{scale} requires conditioning to guide by, got none")
        try:
            return rowwise.expanded(values, self.conditioning)
        except ValueError as error:
            raise ValueError(f"{scale}: {error}" if "must" in str(error) else f"{scale} {error}") from None


def _prediction(value: Any) -> Tensor:
    """The tensor in the return value of a network."""
    value = getattr(value, "sample", value)
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise TypeError(f"a network must return a tensor, or an object with a sample, got {type(value).__name__}")
    return value
