"""Arguments with which each tiny pipeline can be called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .parts import LATENT, TOKENS

__all__ = ["arguments"]

_SIDE = 2 * LATENT
_PROMPT = {"prompt": ["a cat", "two dogs"], "output_type": "latent"}
_SIZE = {"height": _SIDE, "width": _SIDE}


def _images(seed: int = 0) -> torch.Tensor:
    """Two images in [0, 1], (2, 3, 16, 16)."""
    return torch.rand(2, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(seed))


def _mask() -> torch.Tensor:
    """The right half of each image is to be filled, (2, 1, 16, 16)."""
    mask = torch.zeros(2, 1, _SIDE, _SIDE)
    mask[..., LATENT:] = 1
    return mask


_CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "sdxl-refiner": lambda: {**_PROMPT, "image": _images(), "strength": 0.6},
    "pixart": lambda: {**_PROMPT, **_SIZE, "use_resolution_binning": False, "clean_caption": False},
    "dit": lambda: {"class_labels": [1, 2], "output_type": "np"},
    "img2img": lambda: {**_PROMPT, "image": _images()},
    "inpaint": lambda: {**_PROMPT, **_SIZE, "image": _images(), "mask_image": _mask()},
    "inpaint-9": lambda: {**_PROMPT, **_SIZE, "image": _images(), "mask_image": _mask()},
    "controlnet": lambda: {**_PROMPT, "image": _images()},
    "ddpm": lambda: {"batch_size": 2, "output_type": "pt"},
    "ddim": lambda: {"batch_size": 2, "output_type": "pt"},
    "ip-adapter": lambda: {**_PROMPT, **_SIZE, "ip_adapter_image": _images()},
    "sd3": lambda: {**_PROMPT, **_SIZE, "max_sequence_length": TOKENS},
    "flux": lambda: {**_PROMPT, **_SIZE, "max_sequence_length": TOKENS},
    "flux-schnell": lambda: {**_PROMPT, **_SIZE, "max_sequence_length": TOKENS},
}


def arguments(name: str) -> dict[str, Any]:
    """Arguments for a call with two images, without ``num_inference_steps`` and ``generator``.

    The output is the latents (``output_type="latent"``) where the pipeline offers them, else images: a tensor, or the
    array that is all that DiT has.
    """
    return _CALLS.get(name, lambda: {**_PROMPT, **_SIZE})()
