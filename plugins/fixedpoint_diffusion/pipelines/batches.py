"""How many rows a network evaluates in one batch, and whether it evaluates them one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fixedpoint_diffusion.pipelines.calls import Call

__all__ = ["check_merged", "most_rows", "same_tensors", "spending"]

# On a CPU, the activations of more rows no longer fit the cache.
_ON_CPU = 16
# The share of the free memory of a GPU that one batch may take.
_SHARE = 0.5
# What the output of a row may differ by between two batches. Kernels for other sizes round otherwise: bfloat16 by 1e-2.
_MERGES = 5e-2


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


def same_tensors(one: Call, other: Call) -> bool:
    """Whether two calls have equal tensors, but for the dtype."""
    pairs = zip(one.leaves, other.leaves, strict=True)
    return all(torch.equal(mine, theirs.to(mine.dtype)) for (_, mine), (_, theirs) in pairs if isinstance(mine, Tensor))


def check_merged(call: Call, merged: Tensor, own: Tensor) -> None:
    """Check that a merged batch gives what a call alone gave.

    Raises
    ------
    ValueError
        If it does not.
    """
    if not bool(own.isfinite().all()):
        return  # the solve says so
    off = float((merged.double() - own.double()).norm() / own.double().norm().clamp(min=1e-30))
    if not off <= _MERGES:
        raise ValueError(
            f"{type(call.module).__name__} returns another output in a larger batch, off by {off:.1e} of its size, "
            "so that the steps of a chain cannot be evaluated together; a cache, or layers that mix the rows of a "
            "batch, may be the reason"
        )
