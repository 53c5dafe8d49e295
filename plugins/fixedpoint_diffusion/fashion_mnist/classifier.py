"""A small classifier of Fashion-MNIST, and the Frechet distance in its features.

It judges samples: whether they show the requested class, and how far a set of samples is from the real images. The
distance has the form of the FID (Heusel et al. 2017, eq. 6), but in the features of another network. Its values can be
compared only with each other.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fixedpoint_diffusion.fashion_mnist import CLASSES, CLASSIFIER

__all__ = ["Classifier", "Gaussian", "frechet_distance", "load_classifier", "reference"]


class Gaussian(NamedTuple):
    """A Gaussian fitted to features, float64."""

    mean: Float[Tensor, " features"]
    covariance: Float[Tensor, "features features"]

    @classmethod
    def of(cls, features: Float[Tensor, "n features"]) -> Gaussian:
        """The mean and the unbiased covariance of features.

        Raises
        ------
        ValueError
            If there are fewer than two samples.
        """
        if len(features) < 2:
            raise ValueError(f"a covariance requires at least 2 samples, got {len(features)}")
        size = features.shape[1]
        return cls(features.double().mean(dim=0), features.double().T.cov().reshape(size, size))


class Classifier(nn.Module):
    """Three convolutional blocks, a layer of ``FEATURES`` features, and a linear layer for the classes."""

    FEATURES = 64

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for before, after in ((1, 24), (24, 48), (48, 96)):
            blocks += [
                nn.Conv2d(before, after, 3, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.blocks = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(96 * 4 * 4, self.FEATURES), nn.ReLU())
        self.head = nn.Linear(self.FEATURES, len(CLASSES))

    def features(self, images: Float[Tensor, "n 1 32 32"]) -> Float[Tensor, "n features"]:
        """Features of images with pixels in ``[-1, 1]``."""
        found: Tensor = self.blocks(images)
        return found

    def forward(self, images: Float[Tensor, "n 1 32 32"]) -> Float[Tensor, "n classes"]:
        """Logits of the classes."""
        logits: Tensor = self.head(nn.functional.dropout(self.features(images), 0.3, self.training))
        return logits

    @torch.no_grad()
    def judge(
        self, images: Float[Tensor, "n 1 32 32"], batch: int = 250
    ) -> tuple[Float[Tensor, "n features"], Int[Tensor, " n"]]:
        """Features and most likely class of every image, evaluated ``batch`` images at a time."""
        features = torch.cat([self.features(part) for part in images.split(batch)])
        return features, self.head(features).argmax(dim=1)


@functools.cache
def load_classifier() -> Classifier:
    """The bundled classifier, on the CPU, in evaluation mode."""
    classifier = Classifier()
    classifier.load_state_dict({key: value for key, value in _stored().items() if not key.startswith("reference.")})
    return classifier.eval().requires_grad_(False)


def reference() -> Gaussian:
    """The Gaussian fitted to the features of the 9,000 test images that are not bundled, as a reference for samples."""
    stored = _stored()
    return Gaussian(stored["reference.mean"], stored["reference.covariance"])


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    r"""Squared Frechet distance of two Gaussians.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Dowson & Landau 1982, eq. 16), in float64. The trace of the root is
    computed as the sum of the singular values of ``C1^(1/2) C2^(1/2)``, which also works for singular covariances.
    """
    cross = torch.linalg.svdvals(_root(first.covariance) @ _root(second.covariance)).sum()
    apart = (first.mean - second.mean).square().sum()
    return float((apart + first.covariance.trace() + second.covariance.trace() - 2 * cross).clamp(min=0.0))


@functools.cache
def _stored() -> dict[str, Tensor]:
    """The tensors of the classifier's file."""
    from safetensors.torch import load_file

    return load_file(CLASSIFIER)


def _root(covariance: Float[Tensor, "features features"]) -> Float[Tensor, "features features"]:
    """The symmetric square root; eigenvalues that rounding made negative are set to zero."""
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp(min=0.0).sqrt() @ vectors.T
    return root
