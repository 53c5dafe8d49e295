"""Reads files of tensors, ``.npy`` and ``.safetensors``, row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fixedpoint_diffusion.command.image_format import ImageFormat, RefusedError

__all__ = ["count", "read_row"]

# Values rounded in a narrower dtype may lie slightly outside [-1, 1].
_RANGE = 1.0 + 1e-2


def count(path: Path) -> int:
    """The number of images in a file.

    Raises
    ------
    RefusedError
        If the file holds no array of shape ``(N, C, H, W)`` or ``(C, H, W)``.
    """
    with _opened(path) as (shape, _):
        return shape[0] if len(shape) == 4 else 1


def read_row(path: Path, row: int, wanted: ImageFormat) -> Float[Tensor, "C H W"]:
    """One image of a file, float32.

    Raises
    ------
    RefusedError
        If the image has another shape, is not of a floating-point dtype, has values that are not finite, or has values
        outside of ``[-1, 1]`` although the model's images are pictures.
    """
    with _opened(path) as (shape, take):
        image = take(row) if len(shape) == 4 else take(None)
    if tuple(image.shape) != tuple(wanted.shape):
        raise RefusedError(f"has images of shape {tuple(image.shape)}, the model's have {tuple(wanted.shape)}")
    if not image.is_floating_point():
        raise RefusedError(
            f"must hold floating-point values from -1 to 1, got {str(image.dtype).removeprefix('torch.')}"
        )
    image = image.float()
    low, high = float(image.amin()), float(image.amax())
    if not bool(image.isfinite().all()):
        raise RefusedError("has values that are not finite")
    if wanted.drawn and max(-low, high) > _RANGE:
        raise RefusedError(f"has values from {low:.3g} to {high:.3g}, wanted -1 to 1")
    return image


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[tuple[int, ...], Callable[[int | None], Tensor]]]:
    """The shape of the array in a file, and a function that reads one row of it, or all of it for None."""
    opened = _safetensors(path) if path.suffix.lower() == ".safetensors" else _numpy(path)
    with opened as (shape, take):
        if len(shape) not in (3, 4) or 0 in shape:
            raise RefusedError(f"must hold images of shape (N, C, H, W) or (C, H, W), got {shape}")
        yield shape, take


@contextlib.contextmanager
def _numpy(path: Path) -> Iterator[tuple[tuple[int, ...], Callable[[int | None], Tensor]]]:
    try:
        # Mapped, so that reading row by row does not load the whole file; pickles could execute code.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a header is parsed as Python, and may claim any shape: errors are of many types
        raise RefusedError(f"cannot be read as an array of numpy's: {' '.join(str(error).split())}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise RefusedError("must be an array of numbers, as numpy.save writes it")

    def take(row: int | None) -> Tensor:
        # Copied out of the memory map, and in native byte order, which torch requires.
        part = np.array(array if row is None else array[row])
        return torch.from_numpy(part.astype(part.dtype.newbyteorder("="), copy=False))

    yield array.shape, take


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[tuple[tuple[int, ...], Callable[[int | None], Tensor]]]:
    try:
        file: Any = safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise RefusedError(f"cannot be read as safetensors: {' '.join(str(error).split())}") from None
    with file:
        names = sorted(file.keys())
        name = names[0] if len(names) == 1 else "images"
        if name not in names:
            raise RefusedError(f'must hold one tensor, or one called "images", got {", ".join(names) or "none"}')
        part = file.get_slice(name)

        def take(row: int | None) -> Tensor:
            taken: Tensor = file.get_tensor(name) if row is None else part[row : row + 1][0]
            return taken

        yield tuple(part.get_shape()), take
