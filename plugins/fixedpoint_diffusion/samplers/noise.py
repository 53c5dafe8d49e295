"""Random noise for chains, drawn row by row from separate generators on the CPU.

The noise of a row depends neither on the other rows of the batch nor on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["draw_noise", "row_seeds"]


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
        rows.append(torch.randn(steps + 1, *shape, generator=generator, dtype=drawn))
    stacked = torch.stack(rows).to(dtype).to(device)
    return stacked[:, 0].clone(), stacked[:, 1:].clone() if steps else None
