"""Classifier-free guidance: ``u + s (c - u)``, with a scale ``s`` that may require a gradient."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

__all__ = ["GuidanceScale", "check_scale", "combined", "guides"]

GuidanceScale: TypeAlias = "float | Float[Tensor, '']"


def check_scale(value: Any) -> None:
    """Raise a ``TypeError`` or ``ValueError`` unless the scale is a finite number or tensor of no dimension."""
    scalar = isinstance(value, Real) or (isinstance(value, Tensor) and value.ndim == 0)
    if not scalar or isinstance(value, bool):
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"guidance_scale must be a number or a tensor of shape (), got {got}")
    # detached, since the conversion of a tensor with a gradient to a number warns
    if not math.isfinite(value.detach() if isinstance(value, Tensor) else value):
        raise ValueError(f"guidance_scale must be finite, got {value}")


def guides(scale: GuidanceScale) -> bool:
    """Whether a scale requires both predictions: it is not 1, or something asks for the derivative by it."""
    return (isinstance(scale, Tensor) and scale.requires_grad) or bool(scale != 1.0)


def combined(
    free: Float[Tensor, "P *event"], guided: Float[Tensor, "P *event"], scale: GuidanceScale
) -> Float[Tensor, "P *event"]:
    """The guided prediction, from the one without and the one with conditioning."""
    return free + scale * (guided - free)
