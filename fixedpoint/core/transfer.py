"""Copies between host and device: few, and none from the host that makes it wait.

A plain copy to a CUDA device synchronises with the device. A ``non_blocking`` copy does not, and it has read the memory
of the host when it returns, pinned or not. Thus a round has one synchronisation only: the copy of its numbers to the
host.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["to_device", "to_host"]


def to_device(host: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device. On a CPU it may share the memory of the array."""
    if device.type == "cpu" and host.flags.c_contiguous:
        return torch.from_numpy(host)
    return torch.from_numpy(np.ascontiguousarray(host)).to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> list[NDArray[Any]]:
    """Copy small tensors to the host, all in one transfer; on a CPU nothing is copied.

    Numbers arrive in float64, truth values as such.
    """
    if not tensors:
        return []
    if tensors[0].device.type == "cpu":
        return [_array(tensor.detach()) for tensor in tensors]
    flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors]).cpu().numpy()
    ends = list(itertools.accumulate(tensor.numel() for tensor in tensors))
    parts = np.split(flat, ends[:-1])
    shaped = [part.reshape(tuple(tensor.shape)) for part, tensor in zip(parts, tensors, strict=True)]
    return [
        part.astype(np.bool_) if tensor.dtype == torch.bool else part
        for part, tensor in zip(shaped, tensors, strict=True)
    ]


def _array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor of the CPU as an array, of float64 where it holds numbers."""
    wide = tensor if tensor.dtype in (torch.float64, torch.bool) else tensor.double()
    array: NDArray[Any] = wide.numpy()
    return array
