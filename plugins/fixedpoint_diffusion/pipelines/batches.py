"""How many rows a network evaluates in one batch: what is fastest on a CPU, and what the memory of a GPU holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fixedpoint_diffusion.pipelines.calls import Call

__all__ = ["most_rows", "spending"]

# On a CPU, the activations of more rows no longer fit the cache.
_ON_CPU = 16
# The share of the free memory of a GPU that one batch may take.
_SHARE = 0.5


def spending(call: Call) -> tuple[Any, int | None]:
    """Call a network; return its output, and by how many bytes the memory of its GPU rose meanwhile."""
    device = next((leaf.device for _, leaf in call.leaves if isinstance(leaf, Tensor)), torch.device("cpu"))
    if device.type != "cuda":
        return call.run(), None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    output = call.run()
    return output, torch.cuda.max_memory_allocated(device) - before


def most_rows(device: torch.device, rows: int, spent: int | None) -> int | None:
    """Return the largest number of rows in a batch of a network, at least those of one call.

    Parameters
    ----------
    device
        Where the network is.
    rows
        The number of rows of one call.
    spent
        The bytes that this call needed; None if that is not known.
    """
    if device.type == "cpu":
        return max(_ON_CPU, rows)
    if spent is None:
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return max(rows, int(_SHARE * free * rows / max(spent, 1)))
