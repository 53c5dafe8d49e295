"""The digits of scikit-learn: 1797 images of 8 x 8 pixels in 16 grey levels, written by 43 people.

(Alpaydin & Kaynak 1998, "Optical recognition of handwritten digits", UCI machine learning repository.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["SPLITS", "Split", "digits"]

SPLITS = 5


@dataclass(frozen=True)
class Split:
    """Training images and held-out images, with their labels.

    Attributes
    ----------
    images, held_out_images
        Shape ``(n, 1, 8, 8)``, float32, scaled so that the training images have mean 0 and standard deviation 1.
    labels, held_out_labels
        Shape ``(n,)``, int64, 0 to 9.
    """

    images: Float[Tensor, "n 1 8 8"]
    labels: Int[Tensor, " n"]
    held_out_images: Float[Tensor, "m 1 8 8"]
    held_out_labels: Int[Tensor, " m"]


@functools.cache
def digits(split: int = 0) -> Split:
    """One of five splits, each of which holds out a fifth of every class; every image is held out in one of them.

    Parameters
    ----------
    split
        Number of the split, 0 to 4.

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import StratifiedKFold
    except ModuleNotFoundError as error:
        error.add_note("the digits are scikit-learn's: pip install 'fixedpoint-solvers[deq]'")
        raise
    pixels, labels = load_digits(return_X_y=True)
    folds = StratifiedKFold(SPLITS, shuffle=True, random_state=0).split(pixels, labels)
    chosen, held_out = list(folds)[split]
    images = torch.from_numpy(pixels.astype(np.float32)).view(-1, 1, 8, 8)
    mean, deviation = images[chosen].mean(), images[chosen].std()
    images = (images - mean) / deviation
    classes = torch.from_numpy(labels.astype(np.int64))
    return Split(images[chosen], classes[chosen], images[held_out], classes[held_out])
