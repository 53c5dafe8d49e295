"""A small classifier of Fashion-MNIST, and the Frechet distance in its features.

It judges samples: whether the class that was asked for is the class that is seen, and how far a set of samples is
from the real images. The distance is of the same form as the FID (Heusel et al. 2017, eq. 6) in the features of
another network, so its values compare with nothing but each other.
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
        """Mean and (unbiased) covariance of features.

        Raises
        ------
        ValueError
            For fewer than two of them.
        """
        if len(features) < 2:
            raise ValueError(f"a covariance requires at least 2 samples, got {len(features)}")
        size = features.shape[1]
        return cls(features.double().mean(dim=0), features.double().T.cov().reshape(size, size))


class Classifier(nn.Module):
    """Three convolutional blocks, a layer of ``FEATURES`` features, and the classes."""

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
        """Features and the most likely class of every image, evaluated ``batch`` at a time."""
        features = torch.cat([self.features(part) for part in images.split(batch)])
        return features, self.head(features).argmax(dim=1)


@functools.cache
def load_classifier() -> Classifier:
    """The bundled classifier, on the CPU, ready to be evaluated."""
    classifier = Classifier()
    classifier.load_state_dict({key: value for key, value in _stored().items() if not key.startswith("reference.")})
    return classifier.eval().requires_grad_(False)


def reference() -> Gaussian:
    """Features of the 9,000 test images that are not bundled: what real images look like to the classifier."""
    stored = _stored()
    return Gaussian(stored["reference.mean"], stored["reference.covariance"])


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    r"""Squared Frechet distance of two Gaussians.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Dowson & Landau 1982, eq. 16), in float64. The trace of the root
    is the sum of the singular values of ``C1^(1/2) C2^(1/2)``, which is safe where the covariances are singular.
    """
    cross = torch.linalg.svdvals(_root(first.covariance) @ _root(second.covariance)).sum()
    apart = (first.mean - second.mean).square().sum()
    return float((apart + first.covariance.trace() + second.covariance.trace() - 2 * cross).clamp(min=0.0))


@functools.cache
def _stored() -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(CLASSIFIER)


def _root(covariance: Float[Tensor, "features features"]) -> Float[Tensor, "features features"]:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * values.clamp(min=0.0).sqrt() @ vectors.T
    return root
