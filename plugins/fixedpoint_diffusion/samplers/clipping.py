"""Clipping and dynamic thresholding of the predicted clean image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule

__all__ = ["clipped"]


def clipped(image: Float[Tensor, "P *event"], schedule: DDIMSchedule) -> Float[Tensor, "P *event"]:
    """Threshold the clean image dynamically if ``schedule.thresholding`` is set, else clip it to a fixed range."""
    if schedule.thresholding:
        return _thresholded(image, schedule)
    return image.clamp(-schedule.clip_sample_range, schedule.clip_sample_range)


def _thresholded(image: Tensor, schedule: DDIMSchedule) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): clip to a quantile and divide by it."""
    # ``torch.quantile`` does not accept half precision.
    wide = image.flatten(1).to(torch.promote_types(image.dtype, torch.float32))
    bound = torch.quantile(wide.abs(), schedule.dynamic_thresholding_ratio, dim=1, keepdim=True)
    bound = bound.clamp(min=1.0, max=schedule.sample_max_value)
    return (torch.minimum(torch.maximum(wide, -bound), bound) / bound).reshape(image.shape).to(image.dtype)
