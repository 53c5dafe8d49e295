"""What a solve has spent, and what its loop has decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Counts", "Decision"]


@dataclass
class Counts:
    """What was spent.

    Attributes
    ----------
    rounds
        Evaluations that had to wait for one another.
    calls
        Calls of the user's function (micro-batches).
    evaluations
        Shape ``(B,)``, int64: evaluations each row asked for while it was running.
    computed
        Row evaluations carried out in all, those of finished rows that could not be left out included.
    products
        Shape ``(B,)``, int64: Jacobian-vector products of each row in forward mode (by differences: evaluations). Of a
        chain: steps whose derivatives were taken, a diagonal or a whole Jacobian counting as one.
    """

    rounds: int
    calls: int
    evaluations: NDArray[np.int64]
    computed: int
    products: NDArray[np.int64]

    def add(self, other: Counts) -> None:
        """Add what was spent on the same rows elsewhere."""
        self.rounds += other.rounds
        self.calls += other.calls
        self.evaluations = self.evaluations + other.evaluations
        self.computed += other.computed
        self.products = self.products + other.products


class Decision(NamedTuple):
    """What the loop decided after a round, on the host, shapes ``(B,)``: the rows that ended at the point just judged
    (``kept``), those that go on, and those of them that are put back to their best point.
    """

    kept: NDArray[np.bool_]
    running: NDArray[np.bool_]
    rescued: NDArray[np.bool_]
