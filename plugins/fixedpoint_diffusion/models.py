"""Models a run file can name: options that build a denoiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import OptionError, Options, option
from fixedpoint_diffusion.denoiser import Denoiser
from fixedpoint_diffusion.mixture import GaussianMixture
from fixedpoint_diffusion.schedule import DDIMSchedule
from fixedpoint_diffusion.shapes import SHAPES, draw_shapes

__all__ = ["MixtureModel", "Model", "ShapesModel"]


class Model(Options, ABC):
    """Options that build a denoiser."""

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    def is_image(self) -> bool:
        """Whether samples are images ``(channels, height, width)``."""
        return len(self.event_shape) == 3

    @abstractmethod
    def denoiser(self, schedule: DDIMSchedule) -> Denoiser:
        """The denoiser, for a noise schedule."""


@dataclass(frozen=True)
class MixtureModel(Model):
    """A random mixture of Gaussians: an exact score in any dimension.

    The means lie on a sphere whose radius is ``separation`` standard deviations of the widest component.
    """

    variant = "gaussian-mixture"

    components: int = option(6, ge=1, help="number of components")
    dimension: int = option(16, ge=1, help="number of unknowns of one sample")
    variance_low: float = option(0.02, gt=0.0, help="smallest variance of a component")
    variance_high: float = option(0.1, gt=0.0, help="largest variance of a component")
    separation: float = option(6.0, ge=0.0, help="distance of the means from the origin, in standard deviations")
    seed: int = option(0, ge=0, help="seed of the mixture")

    def check(self) -> None:
        if self.variance_high < self.variance_low:
            raise OptionError(
                type(self).__name__,
                "variance_high",
                f"must be at least variance_low = {self.variance_low}, got {self.variance_high}",
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dimension,)

    def denoiser(self, schedule: DDIMSchedule) -> Denoiser:
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.rand(self.components, generator=generator, dtype=torch.float64)
        variances = self.variance_low + (self.variance_high - self.variance_low) * draw
        weights = 0.2 + torch.rand(self.components, generator=generator, dtype=torch.float64)
        directions = torch.randn(self.components, self.dimension, generator=generator, dtype=torch.float64)
        radius = self.separation * variances.amax().sqrt()
        means = directions / directions.norm(dim=1, keepdim=True) * radius
        return GaussianMixture(means, variances, weights, schedule)


@dataclass(frozen=True)
class ShapesModel(Model):
    """A mixture around ten drawn shapes: an exact score whose samples are small pictures."""

    variant = "shapes"

    size: int = option(16, ge=4, help="height and width of an image, in pixels")
    variance: float = option(0.02, gt=0.0, help="variance of a pixel around its shape")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (1, self.size, self.size)

    def denoiser(self, schedule: DDIMSchedule) -> Denoiser:
        means: Float[Tensor, "K 1 size size"] = draw_shapes(self.size)
        ones = torch.ones(len(SHAPES), dtype=torch.float64)
        return GaussianMixture(means, self.variance * ones, ones, schedule)
