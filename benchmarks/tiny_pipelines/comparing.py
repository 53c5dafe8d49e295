"""Calls that can be compared with one another: the same noise for an image in any batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["distance", "doubled", "generators", "images_of"]


def generators(count: int = 2, times: int = 1) -> list[torch.Generator]:
    """One for each image, with a seed of its own; ``times`` copies of the list."""
    return [torch.Generator().manual_seed(seed) for _ in range(times) for seed in range(1, count + 1)]


def doubled(call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call with every one of its two images twice: those of the first two are its own."""
    return {name: _twice(name, value) for name, value in call.items()}


def _twice(name: str, value: Any) -> Any:
    if name == "batch_size":
        return 2 * value
    if isinstance(value, Tensor):
        return torch.cat([value, value])
    # One entry for each image; two numbers may be something else, but for classes.
    listed = isinstance(value, list) and len(value) == 2 and (name == "class_labels" or isinstance(value[0], str))
    return 2 * value if listed else value


def images_of(output: Any) -> Tensor:
    """The images of a pipeline's output, whatever their kind."""
    images = output[0] if isinstance(output, tuple) else output.images
    if isinstance(images, list):
        return torch.stack([_pixels(image) for image in images])
    return torch.as_tensor(images)


def _pixels(image: Any) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(image.height, image.width, -1)


def distance(images: Tensor, others: Tensor) -> float:
    """The relative distance from other images, of the worst image; 0 for the same bits alone."""
    if torch.equal(images, others):
        return 0.0
    off = (images.double() - others.double()).flatten(1).norm(dim=1)
    return float((off / others.double().flatten(1).norm(dim=1)).max())
