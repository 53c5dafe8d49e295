"""AdjointReport: how the backward pass of a solution went; filled in when it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fixedpoint.core.status import Status

__all__ = ["AdjointReport", "AdjointWarning"]


class AdjointWarning(UserWarning):
    """The adjoint equation of a row was not solved: its gradient is as good as the report says, no better."""


def _none() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass
class AdjointReport:
    """How the adjoint equation ``u = J^T u + g`` of a solution was solved: ``solution.extras["adjoint"]``.

    It is empty until a backward pass runs through the solution, and then says how the last one went.

    Attributes
    ----------
    backwards
        Backward passes that have run.
    status
        Shape ``(B,)``: why each row's adjoint solve stopped; of no rows where nothing was iterated to a tolerance.
    rounds
        Products that had to wait for one another.
    products
        Shape ``(B,)``, int64: vector-Jacobian products of each row, and evaluations that recorded it anew.
    relative_error
        Shape ``(B,)``, float64: ``||J^T u + g - u||`` over the size of ``u``; NaN where it was not measured.
    replaced
        Shape ``(B,)``: rows that were given the one-step gradient instead.
    message
        One line per status that occurred.
    """

    backwards: int = 0
    status: tuple[Status, ...] = ()
    rounds: int = 0
    products: NDArray[np.int64] = field(default_factory=_none)
    relative_error: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    replaced: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    message: str = "no backward pass has run"

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Shape ``(B,)``; of no rows before a backward pass."""
        return np.array([status is Status.CONVERGED for status in self.status], dtype=np.bool_)

    def metrics(self) -> dict[str, float]:
        """What a task that differentiates puts into its record; nothing before a backward pass."""
        if not self.backwards:
            return {}
        found = {
            "adjoint_error": float(self.relative_error.max()),
            "adjoint_rounds": float(self.rounds),
            "adjoint_products": float(self.products.sum()),
            "adjoint_replaced": float(self.replaced.sum()),
        }
        return {**found, "adjoint_unsolved": float((~self.converged).sum())} if self.status else found

    def __repr__(self) -> str:
        if not self.backwards:
            return f"AdjointReport({self.message})"
        labels = ", ".join(f"{count} {status.label}" for status, count in sorted(Counter(self.status).items()))
        labels = labels or self.message
        return (
            f"AdjointReport({labels}; {self.rounds} rounds, {int(self.products.sum())} products, "
            f"relative error {self.relative_error.max():.2g})"
        )
