"""Statistics: what the solves of a layer have taken, since they were last looked at."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from fixedpoint.core.solution import Solution
from fixedpoint.gradients.report import AdjointReport

__all__ = ["Statistics"]

# Backward passes that are awaited; a forward pass that is never differentiated is forgotten after so many others.
_AWAITED = 256


@dataclass
class Statistics:
    """Sums over the solves of a layer, host numbers only; :meth:`means` has what a log requires.

    Attributes
    ----------
    solves
        How many.
    rows
        Of all solves.
    unsolved
        Rows that did not converge.
    rounds
        Sequential evaluations.
    evaluations
        Of all rows.
    error
        The largest relative error of any row.
    backwards
        Backward passes with an adjoint solve.
    products
        Vector-Jacobian products of all rows in them.
    adjoint_rows, adjoint_unsolved
        Rows of adjoint solves, and those that did not converge.
    """

    solves: int = 0
    rows: int = 0
    unsolved: int = 0
    rounds: int = 0
    evaluations: int = 0
    error: float = 0.0
    backwards: int = 0
    products: int = 0
    adjoint_rows: int = 0
    adjoint_unsolved: int = 0
    _awaited: deque[AdjointReport] = field(default_factory=lambda: deque(maxlen=_AWAITED), repr=False)

    def add(self, solution: Solution) -> None:
        """Count a solve; its backward pass is counted once it has run."""
        self.solves += 1
        self.rows += len(solution.status)
        self.unsolved += int((~solution.converged).sum())
        self.rounds += solution.counts.rounds
        self.evaluations += int(solution.evaluations.sum())
        self.error = max(self.error, float(solution.relative_error.max()))
        report = solution.extras.get("adjoint")
        self.collect()
        if isinstance(report, AdjointReport):
            self._awaited.append(report)

    def means(self) -> dict[str, float]:
        """Rounds and products a solve, evaluations a row, shares of unsolved rows; nothing where nothing was solved."""
        self.collect()
        if not self.solves:
            return {}
        found = {
            "rounds": self.rounds / self.solves,
            "evaluations": self.evaluations / self.rows,
            "unsolved": self.unsolved / self.rows,
            "error": self.error,
        }
        if self.backwards:
            found["products"] = self.products / self.adjoint_rows
            found["adjoint_unsolved"] = self.adjoint_unsolved / self.adjoint_rows
        return found

    def reset(self) -> None:
        """Begin anew."""
        vars(self).update(vars(Statistics()))

    def collect(self) -> None:
        """Count the backward passes that have run since."""
        waiting = [report for report in self._awaited if not report.backwards]
        for report in self._awaited:
            if report.backwards:
                self.backwards += 1
                self.products += int(report.products.sum())
                self.adjoint_rows += len(report.products)
                self.adjoint_unsolved += int((~report.converged).sum()) if report.status else 0
        self._awaited.clear()
        self._awaited.extend(waiting)
