"""Copies from the host to the device that do not make the host wait.

A plain copy to a CUDA device synchronises with the device. A ``non_blocking`` copy does not, and it has read the memory
of the host when it returns, pinned or not. Thus a round has one synchronisation only: the copy of its decisions to the
host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["to_device"]


def to_device(host: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device. On a CPU it may share the memory of the array."""
    return torch.from_numpy(np.ascontiguousarray(host)).to(device, non_blocking=True)
