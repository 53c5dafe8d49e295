"""Reads Fashion-MNIST as it is distributed: four IDX files, gzipped or not, in one folder."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import torch
from torch import Tensor

HOW_TO_GET = (
    "On Debian: apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb DIR, "
    "then DIR/usr/share/datasets/fashion-mnist"
)


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes (Yann LeCun's format).

    The format is two zero bytes, the type 8, the rank, the sizes as big-endian 32-bit integers, and the values.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        content = file.read()
    zero, kind, rank = struct.unpack_from(">HBB", content)
    if zero != 0 or kind != 8:
        raise ValueError(f"{path}: not an IDX file of unsigned bytes")
    sizes = struct.unpack_from(f">{rank}I", content, 4)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 + 4 * rank).reshape(sizes)


def load(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Load the images and labels of a split.

    Parameters
    ----------
    folder
        The folder of the four IDX files.
    split
        ``"train"`` (60,000 images) or ``"t10k"`` (10,000 images).

    Returns
    -------
    images
        Shape ``(n, 1, 32, 32)``, uint8, padded by two black pixels on every side.
    labels
        Shape ``(n,)``, int64.
    """
    images, labels = (
        read_idx(_found(folder, f"{split}-{kind}")) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    return torch.nn.functional.pad(images, (2, 2, 2, 2)).unsqueeze(1), labels.long()


def scaled(images: Tensor) -> Tensor:
    """Pixels from 0 to 255 as float32 in ``[-1, 1]``."""
    return images.float() / 127.5 - 1.0


def _found(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            return path
    raise SystemExit(f"{folder} has no {name}.gz. {HOW_TO_GET}")
