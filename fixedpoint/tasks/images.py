"""Pictures that a task returns for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Images"]


@dataclass(frozen=True)
class Images:
    """Pictures for the report.

    Attributes
    ----------
    pixels
        Shape ``(count, height, width)``, ``(count, height, width, 1)`` or ``(count, height, width, 3)``, float,
        nominally within ``[low, high]``.
    low, high
        The values drawn as black and as white, ``low < high``.
    """

    pixels: NDArray[np.floating[Any]]
    low: float = -1.0
    high: float = 1.0
