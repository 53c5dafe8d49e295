"""The counts of a solve (rounds, calls, evaluations, products) and the decisions of its loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Counts", "Decision"]


@dataclass
class Counts:
    """What a solve has spent.

    Attributes
    ----------
    rounds
        Evaluations that had to wait for one another.
    calls
        Calls of the user's function; a round has several where ``max_batch`` splits it.
    evaluations
        Shape ``(B,)``, int64: evaluations that each row required while it was running.
    computed
        Evaluations of rows that were carried out in total, including those of finished rows that could not be omitted.
    products
        Shape ``(B,)``, int64: Jacobian-vector products of each row in forward mode; products by differences count as
        evaluations. Derivatives that the problem computes itself for parts of a row are counted here, too: one for each
        part, whether a diagonal or a whole Jacobian.
    """

    rounds: int
    calls: int
    evaluations: NDArray[np.int64]
    computed: int
    products: NDArray[np.int64]

    def add(self, other: Counts) -> None:
        """Add the counts of another solve of the same rows, in place."""
        self.rounds += other.rounds
        self.calls += other.calls
        self.evaluations = self.evaluations + other.evaluations
        self.computed += other.computed
        self.products = self.products + other.products


class Decision(NamedTuple):
    """What the loop decided after a round, on the host.

    Attributes
    ----------
    kept
        Shape ``(B,)``, bool, as all others: rows that ended at the point just judged and return it.
    running
        Rows that go on.
    rescued
        Running rows that are put back to their best point.
    reset
        Running rows whose solver begins anew: the rescued ones, and those rescued some rounds ago.
    """

    kept: NDArray[np.bool_]
    running: NDArray[np.bool_]
    rescued: NDArray[np.bool_]
    reset: NDArray[np.bool_]
