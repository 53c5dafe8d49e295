"""Noise drawn once, each row from a generator of its own on the CPU.

An image's noise depends neither on its batch-mates nor on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["draw_noise", "row_seeds"]


def row_seeds(seed: int, rows: int) -> list[int]:
    """One seed per row from a run's seed; row ``i``'s does not depend on how many rows there are."""
    return [int(np.random.SeedSequence((seed, row)).generate_state(1, np.uint64)[0] >> 1) for row in range(rows)]


def draw_noise(
    seeds: Sequence[int | torch.Generator],
    shape: Sequence[int],
    steps: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, "B *event"], Float[Tensor, "B N *event"] | None]:
    """Starting noise ``x_T`` and, for a stochastic chain, the noise of every step.

    Parameters
    ----------
    seeds
        A seed or a CPU generator per row.
    shape
        Shape of one image.
    steps
        ``N`` for a chain with eta > 0; 0 draws no step noise.
    dtype, device
        Of the result. The draw itself is in float32 unless ``dtype`` is float64.

    Returns
    -------
    x_T
        Standard normal, shape ``(B, *shape)``.
    noise
        Standard normal, shape ``(B, N, *shape)``, or None.
    """
    drawn = torch.float64 if dtype == torch.float64 else torch.float32
    rows = []
    for seed in seeds:
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        rows.append(torch.randn(steps + 1, *shape, generator=generator, dtype=drawn))
    stacked = torch.stack(rows).to(dtype).to(device)
    return stacked[:, 0].clone(), stacked[:, 1:].clone() if steps else None
