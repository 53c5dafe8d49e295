"""What the host has decided, on the device, without the host waiting for it.

A plain copy to a CUDA device synchronises with it. One that is ``non_blocking`` does not, and has read the memory of
the host when it returns, pinned or not. A round has one synchronisation: the one that tells the host how it went.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["to_device"]


def to_device(host: NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device: a copy, but on a CPU, where it may be the array's own memory."""
    return torch.from_numpy(np.ascontiguousarray(host)).to(device, non_blocking=True)
