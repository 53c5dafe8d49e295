"""Writes the bundled test images: the first hundred of every class, with the classes in turn.

    python recipes/fashion_mnist/bundle_images.py DATA OUT

DATA is the folder of the four IDX files; OUT is the ``.npz`` file to write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from data import load
from torch import Tensor

EACH = 100


def bundled(labels: Tensor) -> Tensor:
    """Indices of the bundled images in the test set; bundled image ``i`` is of class ``i % 10``."""
    return torch.stack([torch.nonzero(labels == label).flatten()[:EACH] for label in range(10)], dim=1).flatten()


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the four IDX files.")],
    out: Annotated[Path, typer.Argument(help="File to write (.npz).")],
) -> None:
    """Write images without their border, shape ``(1000, 28, 28)``, uint8, and labels."""
    images, labels = load(data, "t10k")
    places = bundled(labels)
    np.savez_compressed(
        out, images=images[places, 0, 2:-2, 2:-2].numpy(), labels=labels[places].numpy().astype(np.uint8)
    )


if __name__ == "__main__":
    typer.run(main)
