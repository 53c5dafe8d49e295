"""Statistics: sums over the solves of a layer since the last reset, for logs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from fixedpoint.core.solution import Solution
from fixedpoint.gradients.report import AdjointReport

__all__ = ["Statistics"]

# Number of forward passes whose backward pass may still come. Some never have one: the oldest are forgotten.
_AWAITED = 256


@dataclass
class Statistics:
    """Sums over the solves of a layer, as numbers on the host; :meth:`means` returns the averages for a log.

    Attributes
    ----------
    solves
        Number of solves.
    rows
        Number of rows in all solves.
    unsolved
        Number of rows that did not converge.
    rounds
        Number of rounds in all solves.
    evaluations
        Number of evaluations, summed over all rows.
    error
        Largest relative error of any row.
    backwards
        Number of backward passes with an adjoint solve.
    products
        Number of vector-Jacobian products in these backward passes, summed over all rows.
    adjoint_rows
        Number of rows in these adjoint solves.
    adjoint_unsolved
        Number of rows whose adjoint equation was not solved.
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
        """Count a solve. Its backward pass is counted once it has run."""
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
        """Return the averages; an empty dict if there was no solve.

        Returns
        -------
        dict
            ``rounds`` per solve, ``evaluations`` per row, the fraction ``unsolved`` of the rows, and the largest
            ``error``. After a backward pass also ``products`` per row of an adjoint solve, and the fraction
            ``adjoint_unsolved`` of these rows.
        """
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
        """Set all numbers to zero, and forget backward passes that have not run yet."""
        vars(self).update(vars(Statistics()))

    def collect(self) -> None:
        """Count the backward passes that have run since the last call."""
        waiting = [report for report in self._awaited if not report.backwards]
        for report in self._awaited:
            if report.backwards:
                self.backwards += 1
                self.products += int(report.products.sum())
                self.adjoint_rows += len(report.products)
                self.adjoint_unsolved += int((~report.converged).sum()) if len(report.codes) else 0
        self._awaited.clear()
        self._awaited.extend(waiting)
