"""The bundled test images."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint_diffusion.fashion_mnist import TEST_IMAGES

__all__ = ["held_out_images"]


def held_out_images() -> tuple[Float[Tensor, "1000 1 32 32"], Int[Tensor, " 1000"]]:
    """A thousand images of the test set and their classes: the first hundred of every class, in turn.

    Returns
    -------
    images
        Shape ``(1000, 1, 32, 32)``, float32 in ``[-1, 1]``, padded by two black pixels on every side.
    labels
        Shape ``(1000,)``, int64, ``0 .. 9``; image ``i`` is of class ``i % 10``.
    """
    with np.load(TEST_IMAGES, allow_pickle=False) as stored:
        images, labels = torch.from_numpy(stored["images"]), torch.from_numpy(stored["labels"]).long()
    padded = torch.nn.functional.pad(images.unsqueeze(1), (2, 2, 2, 2))
    return padded.float() / 127.5 - 1.0, labels
