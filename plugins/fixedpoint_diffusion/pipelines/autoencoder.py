"""Images as a pipeline's samples, by the pipeline's own autoencoder and its own code.

A pipeline ends by giving its last sample to its autoencoder: scaled, shifted, normalised channel by channel, unpacked
from a sequence of patches. In all pipelines of images this is a rearrangement with a factor and a shift for every
element. It is found by replays of the pipeline's end with samples of zeros and ones, so that no pipeline is known here,
and its inverse takes encoded images to samples.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.passes import Pass, Step

__all__ = ["Decoding", "decoding_of", "encoded", "pixels_of"]

# What a rearrangement may be off by in the pipeline's dtype, relative to the largest number.
_AGREES = 2e-2
# Images without an autoencoder are x / 2 + 1/2, to this.
_SAME = 1e-2


@dataclass(frozen=True, eq=False)
class Decoding:
    """How a pipeline makes of its last sample what its autoencoder decodes: ``z = shift + factor * sample[order]``.

    Attributes
    ----------
    decoder
        The autoencoder.
    shape
        Shape of what it decodes, of one image.
    order
        Shape ``(n,)``: the element of the sample that each element of ``z`` is made of, both flat.
    factor, shift
        Shape ``(n,)``, float64.
    """

    decoder: torch.nn.Module
    shape: tuple[int, ...]
    order: Int[Tensor, " n"]
    factor: Float[Tensor, " n"]
    shift: Float[Tensor, " n"]

    def decoded(self, samples: Float[Tensor, "B *event"]) -> Float[Tensor, "B *latent"]:
        """Return what the autoencoder is given for some samples."""
        flat = samples.flatten(1).double()[:, self.order]
        return (self.shift + self.factor * flat).view(len(samples), *self.shape)

    def samples(self, latents: Float[Tensor, "B *latent"], event: tuple[int, ...]) -> Float[Tensor, "B *event"]:
        """Return the samples of which the pipeline makes these latents, in float32."""
        flat = torch.empty(len(latents), len(self.order), dtype=torch.float64, device=latents.device)
        flat[:, self.order] = (latents.flatten(1).double() - self.shift) / self.factor
        return flat.view(len(latents), *event).float()


def decoding_of(loop: Loop) -> Decoding | None:
    """Return how a loop's last sample is decoded; None for a pipeline without an autoencoder, whose samples are pixels.

    Raises
    ------
    ValueError
        If the pipeline makes its images in another way.
    """
    name = type(loop.replay.pipe).__name__
    like = loop.layout.samples(loop.start)
    zeros, ended = torch.zeros_like(like), _ended(loop, torch.zeros_like(like))
    if not isinstance(ended, tuple):
        _check_pixels(loop, like)
        return None
    decoder, shift = ended
    count = like[0].numel()
    if shift.ndim != 4 or len(shift) != len(like) or shift[0].numel() != count:
        raise ValueError(
            f"{name} gives its decoder numbers of shape {tuple(shift.shape)} for samples of shape {tuple(like.shape)}, "
            "so that an image cannot be taken back to samples; give samples (input_type='latent')"
        )

    def told(values: Tensor) -> Tensor:
        given = zeros + values.to(zeros).view(1, *like.shape[1:])
        found = _ended(loop, given)
        assert isinstance(found, tuple)
        flat: Tensor = found[1][0].double().flatten()
        return flat

    low = shift[0].double().flatten()
    factor = told(torch.ones(count, device=like.device)) - low
    order = torch.zeros(count, dtype=torch.int64, device=like.device)
    numbers = torch.arange(count, device=like.device)
    for bit in range((count - 1).bit_length()):
        high = (told(numbers >> bit & 1) - low) / factor > 0.5
        order |= high.long() << bit
    made = Decoding(decoder, tuple(shift.shape[1:]), order.clamp(max=count - 1), factor, low)
    random = torch.randn(like.shape, generator=torch.Generator().manual_seed(1), dtype=like.dtype, device="cpu").to(
        like.device
    )
    known, wanted = _ended(loop, random), made.decoded(random)
    assert isinstance(known, tuple)
    off = (known[1].double() - wanted).abs().max()
    if not bool((factor != 0).all()) or not float(off) <= _AGREES * float(wanted.abs().max()):
        raise ValueError(
            f"{name} gives its decoder something else than its samples with a factor and a shift for every number, so "
            "that an image cannot be taken back to samples; give samples (input_type='latent')"
        )
    return made


def _ended(loop: Loop, samples: Tensor) -> tuple[torch.nn.Module, Tensor] | Any:
    """Play the end with some samples; return the decoder and what that is given, or the pipeline's output."""
    dtype = loop.steps[0].sample.dtype

    def told(step: Step) -> Tensor | None:
        return samples.to(dtype) if step.number == loop.length - 1 else None

    # The end is that of images, also where the call asks for latents.
    named = inspect.signature(loop.replay.call).parameters
    instead: dict[str, Any] = {"output_type": "np"} if "output_type" in named else {}
    result = loop.replay.play(Pass(loop.template, told=told, noise=loop.told_noise), **instead)
    ended = loop.replay.ended
    if ended is None or ended.decoder is None:
        return result
    if not isinstance(ended.decoded, Tensor):
        raise ValueError(f"{type(ended.decoder).__name__} decodes a {type(ended.decoded).__name__}, not a tensor")
    return ended.decoder, ended.decoded


def _check_pixels(loop: Loop, like: Tensor) -> None:
    """Check that a pipeline without an autoencoder makes its images of samples in [-1, 1]."""
    random = torch.rand(like.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32, device="cpu").to(
        like.device
    )
    result = _ended(loop, 1.8 * random - 0.9)
    images = result[0] if result is not None else None
    wanted = (0.9 * random + 0.05).movedim(1, -1).cpu() if like.ndim == 4 else None
    found = torch.as_tensor(np.asarray(images), dtype=torch.float32) if isinstance(images, np.ndarray) else None
    if found is None or wanted is None or found.shape != wanted.shape or float((found - wanted).abs().max()) > _SAME:
        raise ValueError(
            f"{type(loop.replay.pipe).__name__} has no autoencoder, and its images are not x / 2 + 1/2 of its samples "
            "x, so that an image cannot be taken back to samples; give samples (input_type='latent')"
        )


def encoded(decoding: Decoding, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B *latent"]:
    """Return what the autoencoder makes of pixels in [-1, 1]: the mode of its distribution, where it has one."""
    model: Any = decoding.decoder
    parameter = next(model.parameters())
    dtype = parameter.dtype
    # In float16 these overflow; the pipelines of Stable Diffusion XL do the same.
    upcast = dtype == torch.float16 and bool(model.config.get("force_upcast", False))
    if upcast:
        model.to(torch.float32)
    try:
        found = model.encode(pixels.to(parameter.device, torch.float32 if upcast else dtype))
    finally:
        if upcast:
            model.to(dtype)
    if hasattr(found, "latent_dist"):
        latents: Any = found.latent_dist.mode()
    else:
        latents = next((getattr(found, name) for name in ("latents", "latent") if hasattr(found, name)), None)
    if isinstance(latents, Tensor):
        return latents
    raise ValueError(f"{type(model).__name__} encodes images as {type(found).__name__}, which has no latents")


def pixels_of(images: Any, channels: int, processor: Any) -> Float[Tensor, "B C H W"]:
    """Return images as a batch with pixels in [-1, 1], float32.

    Parameters
    ----------
    images
        A PIL image; a numpy array with pixels in [0, 1], shape ``(H, W)``, ``(H, W, C)`` or ``(B, H, W, C)``; a tensor
        with pixels in [0, 1], shape ``(C, H, W)`` or ``(B, C, H, W)``; or a list of these.
    channels
        ``C``.
    processor
        The pipeline's ``image_processor``, whose ``preprocess`` takes images to the pipeline's range; None: that is
        [-1, 1].

    Raises
    ------
    TypeError, ValueError
        If the images are not as described, or of several sizes.
    """
    parts = list(images) if isinstance(images, (list, tuple)) else [images]
    if not parts:
        raise ValueError("images must hold at least one image, got none")
    batches = [_unit(part, channels) for part in parts]
    sizes = {tuple(part.shape[2:]) for part in batches}
    if len(sizes) > 1:
        said = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ValueError(f"images must be of one size, got {said} pixels")
    whole = torch.cat(batches)
    if callable(getattr(processor, "preprocess", None)):
        height, width = whole.shape[2:]
        made: Tensor = processor.preprocess(whole, height=height, width=width)
        return made.float()
    return 2 * whole - 1


def _unit(image: Any, channels: int) -> Float[Tensor, "b C H W"]:
    """Return one image, or a batch of them, as a tensor with pixels in [0, 1]."""
    if isinstance(image, Tensor):
        found = image.detach().unsqueeze(0) if image.ndim == 3 else image.detach()
    elif isinstance(image, np.ndarray):
        found = torch.from_numpy(np.ascontiguousarray(image))
        found = found.unsqueeze(-1) if found.ndim == 2 else found
        found = (found.unsqueeze(0) if found.ndim == 3 else found).movedim(-1, 1)
    elif hasattr(image, "convert"):
        levels = np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.float32) / 255
        return torch.from_numpy(levels).view(1, *levels.shape[:2], channels).movedim(-1, 1)
    else:
        raise TypeError(f"images must be PIL images, numpy arrays or tensors, got {type(image).__name__}")
    if found.ndim != 4 or found.shape[1] != channels:
        wanted = f"(B, H, W, {channels})" if isinstance(image, np.ndarray) else f"(B, {channels}, H, W)"
        raise ValueError(f"images must have shape {wanted} or that of one image, got {tuple(image.shape)}")
    if not found.is_floating_point():
        raise ValueError(f"images must be floating-point numbers in [0, 1], got {image.dtype}")
    low, high = float(found.min()), float(found.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"images must have pixels in [0, 1], got {low:.3g} to {high:.3g}")
    return found.float().clamp(0, 1)
