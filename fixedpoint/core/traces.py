"""The trace of a solve: the largest errors of its rows, point by point."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fixedpoint.core.point import Numbers

__all__ = ["largest_errors"]


def largest_errors(numbers: Numbers, live: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest error of every row, absolute and relative to the scale, each of shape ``(B,)``.

    NaN in rows that are not ``live``. 0 / 0 counts as 0: a row whose residual and value are both zero is solved.
    """
    error, scale = numbers.error, numbers.scale
    if error.size == 1:
        one, size = error.item(), scale.item()
        ratio = one / size if size else (math.inf if one else 0.0)
        runs = bool(live[0])
        return np.array([one if runs else math.nan]), np.array([ratio if runs and numbers.finite[0] else math.nan])
    with np.errstate(all="ignore"):
        relative = error / scale
        relative[np.isnan(relative)] = 0.0
    worst, shown = (np.max(part, axis=1) if part.shape[1] > 1 else part[:, 0] for part in (error, relative))
    return np.where(live, worst, np.nan), np.where(live & numbers.finite, shown, np.nan)
