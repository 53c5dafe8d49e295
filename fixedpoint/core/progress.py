"""Where a solve stands: what progress displays and hooks are told after every round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """Where a solve stands after a round: for progress displays and hooks.

    Attributes
    ----------
    round
        Rounds so far.
    running
        Rows that are.
    relative_error
        The largest of any row; NaN where a solver has none to tell.
    evaluations
        Shape ``(B,)``: evaluations of every row so far; None where a solver has none to tell.
    latest
        ``f`` at the point the round evaluated, shape ``(B, D)``; of a chain, what its last step makes of the state
        before, shape ``(B, d)``: the image as it forms. Its memory is used again; None where a solver has none.
    """

    round: int
    running: int
    relative_error: float
    evaluations: NDArray[np.int64] | None = None
    latest: Float[Tensor, "B n"] | None = None
