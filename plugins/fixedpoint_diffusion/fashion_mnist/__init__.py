"""Bundled Fashion-MNIST files: a trained denoiser, a classifier for judging samples, and a thousand test images.

Fashion-MNIST (Xiao, Rasul & Vollgraf 2017) is under the MIT licence, Copyright (c) 2017 Zalando SE; see ``NOTICE``.
Images are padded by two black pixels on every side to 32 x 32.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["CLASSES", "CLASSIFIER", "DENOISER", "TEST_IMAGES"]

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

_HERE = Path(__file__).parent

DENOISER = _HERE / "denoiser"
"""The denoiser, a model folder of ``diffusers``."""

CLASSIFIER = _HERE / "classifier.safetensors"
"""The weights of the classifier."""

TEST_IMAGES = _HERE / "test_images.npz"
"""A hundred test images of every class."""
