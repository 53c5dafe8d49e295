"""Random noise for chains: drawn row by row from separate generators on the CPU, and added by the steps.

The noise of a row depends neither on the other rows of the batch nor on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["AddedNoise", "draw_noise", "row_seeds"]


def row_seeds(seed: int, rows: int) -> list[int]:
    """One seed per row, from the seed of a run; the seed of row ``i`` does not depend on the number of rows."""
    # The shift keeps every seed below 2^63, so that it fits a signed 64-bit integer.
    return [int(np.random.SeedSequence((seed, row)).generate_state(1, np.uint64)[0] >> 1) for row in range(rows)]


def draw_noise(
    seeds: Sequence[int | torch.Generator],
    shape: Sequence[int],
    steps: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, "B *event"], Float[Tensor, "B N *event"] | None]:
    """Draw the starting noise ``x_T`` and, for a stochastic chain, the noise of every step.

    Parameters
    ----------
    seeds
        One seed, or one CPU generator, per row.
    shape
        Shape of one image, ``event``.
    steps
        ``N`` for a chain with eta > 0; with 0 no noise of steps is drawn.
    dtype, device
        Dtype and device of the result. The noise is drawn in float32 unless ``dtype`` is float64.

    Returns
    -------
    x_T
        Standard normal, shape ``(B, *shape)``.
    noise
        Standard normal, shape ``(B, N, *shape)``; None if ``steps`` is 0.
    """
    drawn = torch.float64 if dtype == torch.float64 else torch.float32
    rows = []
    for seed in seeds:
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        rows.append(torch.randn(steps + 1, *shape, generator=generator, dtype=drawn, device="cpu"))
    stacked = torch.stack(rows).to(dtype).to(device)
    return stacked[:, 0].clone(), stacked[:, 1:].clone() if steps else None


@dataclass(frozen=True, eq=False)
class AddedNoise:
    """The noise that each of ``N`` steps adds: a combination of few of ``M`` draws.

    Attributes
    ----------
    noise
        The draws, shape ``(B, M, *event)``.
    draws, scales
        Numbers and coefficients of the draws of each step, shape ``(N, w)``, int64 and float64. Steps with fewer than
        ``w`` draws are filled up with coefficients of zero.
    """

    noise: Float[Tensor, "B M *event"]
    draws: Int[Tensor, "N w"]
    scales: Float[Tensor, "N w"]
    _placed: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, noise: Float[Tensor, "B M *event"], weights: Float[Tensor, "N M"]) -> AddedNoise:
        """The noise of steps that combine the draws, of which there is at least one, with given weights."""
        used = weights != 0
        width = max(int(used.sum(1).max()), 1)
        draws = used.long().argsort(dim=1, descending=True, stable=True)[:, :width]
        return cls(noise, draws, weights.gather(1, draws))

    def at(self, index: Int[Tensor, " P"], row: Int[Tensor, " P"], like: Float[Tensor, "P *event"]) -> Tensor:
        """The noise of given steps and rows, with the shape, dtype and device of ``like``."""
        key = (like.device, like.dtype)
        if key not in self._placed:
            self._placed[key] = self.draws.to(like.device), self.scales.to(like)
        draws, scales = (table[index].unbind(1) for table in self._placed[key])
        along = (-1, *[1] * (like.ndim - 1))
        parts = (scale.view(along) * self.noise[row, draw].to(like) for draw, scale in zip(draws, scales, strict=True))
        return functools.reduce(torch.add, parts)

    def every(self, row: Int[Tensor, " B"], like: Tensor) -> list[Float[Tensor, "B *event"]]:
        """The noise of every step, for given rows, in the dtype and on the device of ``like``."""
        noise = self.noise[row].to(like)
        steps = zip(self.draws.tolist(), self.scales.tolist(), strict=True)
        return [
            functools.reduce(torch.add, (scale * noise[:, k] for k, scale in zip(*step, strict=True))) for step in steps
        ]
