"""The progress of a solve, which is passed to callbacks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """The progress of a solve after a round, for progress displays and other callbacks.

    Attributes
    ----------
    round
        Number of rounds so far.
    running
        Number of rows that are still running.
    relative_error
        The largest relative error of any row; NaN where the solver does not report it.
    evaluations
        Shape ``(B,)``, int64: evaluations of every row so far; None where the solver does not report them.
    latest
        ``f`` at the point evaluated last, shape ``(B, D)``, or the part of it that is the result, shape ``(B, n)``.
        None where the solver does not report it. The memory is reused: clone what is kept.
    """

    round: int
    running: int
    relative_error: float
    evaluations: NDArray[np.int64] | None = None
    latest: Float[Tensor, "B n"] | None = None
