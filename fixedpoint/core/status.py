"""The statuses of rows, each with a sentence that says why the row stopped and what to try."""

from __future__ import annotations

import enum

__all__ = ["RAN_AWAY", "ROOT_DOUBTED", "ConvergenceError", "Status", "floor_sentence"]

RAN_AWAY = (
    "the limit on rounds or on patience was reached, and meanwhile the state ran away: it grew more than tenfold while "
    "the error did not fall, so there may be no fixed point, or none on that side of the start; check the sign of the "
    "update, start elsewhere, or take a smaller relaxation"
)
ROOT_DOUBTED = (
    "g is small beside its value at the start, but the step that its last slope implies is not small beside z: g "
    "vanishes far out or comes near zero without reaching it, and there may be no root on this side, or the root is at "
    "z = 0; start elsewhere, or give atol if so small a g is enough, as a root at z = 0 requires"
)


class Status(enum.IntEnum):
    """Status of one row of a solve.

    The values fit into int8, the dtype in which a solve holds them. ``status.sentence`` says what a status means.
    """

    RUNNING = 0
    CONVERGED = 1
    MAX_ROUNDS = 2
    STALLED = 3
    DIVERGED = 4
    NONFINITE = 5
    MIXED = 6

    @property
    def label(self) -> str:
        """The name in tables and records, e.g. ``"max_rounds"``."""
        return self.name.lower()

    @property
    def sentence(self) -> str:
        """What happened to the row, and what to try."""
        return _SENTENCES[self]


def floor_sentence(dtype: str) -> str:
    """Return the sentence for a stalled row whose error is at the rounding of ``dtype``."""
    return (
        f"the tolerance asks for more than {dtype} can give: all that is left of the error is the rounding of {dtype} "
        "(take a wider dtype or a looser tolerance)"
    )


_SENTENCES = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "the error of the returned point is within the tolerance",
    Status.MAX_ROUNDS: (
        "the limit on rounds was reached before the tolerance; raise max_rounds, loosen rtol or atol, or take "
        "another solver (rows that depend on one another need rows='joint'; a solution at zero needs atol > 0)"
    ),
    Status.STALLED: (
        "the error neither fell nor rose any further, above the tolerance: either the tolerance asks for more than the "
        "dtype can give (take a wider dtype or a looser tolerance) or the iterates go round in a cycle or wander (a "
        "relaxation below 1 damps a cycle; another solver, auto or newton-krylov, or another start may get through; "
        "rows that depend on one another require rows='joint')"
    ),
    Status.DIVERGED: "the error grew far beyond its first value; take a smaller relaxation or another solver",
    Status.NONFINITE: (
        "f returned NaN or Inf; the best finite point is returned. Start nearer to the solution, or check f there"
    ),
    Status.MIXED: (
        "f of all rows together, at the returned point, is not what the row was judged by: rows depend on one another "
        "(batch normalisation, attention across the batch, nodes of a graph). They are one problem: rows='joint'"
    ),
}


class ConvergenceError(RuntimeError):
    """Raised by ``Solution.raise_for_status`` if any row did not converge."""
