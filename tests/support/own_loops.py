"""A loop of a user's own around a scheduler, for tests to fill."""

from __future__ import annotations

import torch
from diffusers import DDPMPipeline
from torch import Tensor

__all__ = ["STEPS", "Own"]

STEPS = 8


class Own(DDPMPipeline):
    """Begins at given numbers and goes on as a loop of a subclass does; returns the samples."""

    def __call__(self, generator: torch.Generator) -> tuple[Tensor]:
        size = self.unet.config.sample_size
        sample = torch.randn(2, self.unet.config.in_channels, size, size, generator=generator)
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            sample = self.after(sample, t)
        return (sample,)

    def after(self, sample: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError
