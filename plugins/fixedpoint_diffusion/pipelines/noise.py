"""The noise that the steps of a pipeline draw, as rows, and other noise in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint_diffusion.pipelines.layout import Layout
from fixedpoint_diffusion.pipelines.passes import Step

__all__ = ["check_noise", "drawn", "instead"]


def drawn(steps: Sequence[Step], layout: Layout) -> Float[Tensor, "d M *row"] | None:
    """Return what the steps drew, in their order; None if they drew nothing."""
    found = [each for step in steps for each in step.noise]
    if not found:
        return None
    whole = torch.cat(found).unflatten(0, (-1, layout.count * layout.each))
    return torch.stack([layout.rows(each) for each in whole], dim=1)


def instead(
    noise: Float[Tensor, "d M *row"], steps: Sequence[Step], layout: Layout, step: int, place: int, own: Tensor
) -> Tensor:
    """Return what a step gets for one of its draws, given what was drawn."""
    # With a list of generators a step draws for one sample after another.
    split = layout.count * layout.each // len(own)
    first = sum(len(each.noise) for each in steps[:step]) + place
    told = layout.samples(noise[:, first // split]).to(own.dtype)
    return told if split == 1 else told[first % split : first % split + 1]


def check_noise(noise: Any, own: Tensor | None) -> None:
    """Check that noise goes with what the steps draw.

    Raises
    ------
    ValueError
        If it has another shape, or if the steps draw none.
    """
    if own is None:
        raise ValueError("noise is for schedulers that draw some, and this one draws none")
    got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
    if got != tuple(own.shape):
        raise ValueError(
            f"noise must have shape {tuple(own.shape)}, one image for every draw of every sample, got {got}"
        )
