"""AdjointReport: describes how the adjoint equation was solved in the last backward pass of a solution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fixedpoint.core.status import Status

__all__ = ["AdjointReport", "AdjointWarning"]


class AdjointWarning(UserWarning):
    """The adjoint equation of a row was not solved; the ``AdjointReport`` says how inexact its gradient is."""


def _none() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass
class AdjointReport:
    """How the adjoint equation ``u = J^T u + g`` of a solution was solved.

    It is stored in ``solution.extras["adjoint"]``. It is empty until a backward pass runs through the solution, and
    then describes the last one.

    Attributes
    ----------
    backwards
        Number of backward passes that have run.
    status
        Length ``B``: why the adjoint solve of each row stopped; empty if the estimator does not iterate to a tolerance.
    rounds
        Number of products made in sequence.
    products
        Shape ``(B,)``, int64: vector-Jacobian products of each row, plus the evaluations that recorded it again.
    relative_error
        Shape ``(B,)``, float64: ``||J^T u + g - u||`` relative to the size of ``u``; NaN where it was not measured.
    replaced
        Shape ``(B,)``, bool: whether the row was given the one-step gradient instead.
    message
        One line for every status that occurred.
    """

    backwards: int = 0
    status: Sequence[Status] = ()
    rounds: int = 0
    products: NDArray[np.int64] = field(default_factory=_none)
    relative_error: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    replaced: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    message: str = "no backward pass has run"

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether the adjoint equation of each row was solved; shape ``(B,)``, bool, empty before a backward pass."""
        return np.array([status is Status.CONVERGED for status in self.status], dtype=np.bool_)

    def metrics(self) -> dict[str, float]:
        """The numbers that a task stores in its record; empty before a backward pass."""
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
