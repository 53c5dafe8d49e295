"""Turns of several step solvers: where a turn ends for a row, and what a solver knows of rows that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.pace import Pace
from fixedpoint.core.point import Evaluated
from fixedpoint.core.subset import copy_rows, join_rows
from fixedpoint.core.transfer import to_device

__all__ = ["Pause", "Turn", "joined", "without_rows"]


@dataclass(frozen=True)
class Pause:
    """Rows that are paused: their last point, and what the solver knows after it.

    Attributes
    ----------
    rows
        Shape ``(k,)``, int64: which rows of the solve they are, ascending.
    at
        Their points, of which the solver has made no step yet.
    state
        The solver's state, in memory of its own. Its layout depends on the row alone, not on the other rows.
    """

    rows: NDArray[np.int64]
    at: Evaluated
    state: Any


class _Pausing(Protocol):
    def paused(self, state: Any, index: Int[Tensor, " k"]) -> Any: ...


@dataclass(frozen=True)
class Turn:
    """What is special about a solve that is a turn of a solver among others; by default nothing is.

    Attributes
    ----------
    pace
        Rows slower than this end as stalled; None: however slow they are, they go on.
    latest
        Shape ``(B, D)``: takes the value ``f(z)`` of the last point of every row, from which the row may go on later,
        whether or not that point was its best.
    pauses
        Takes what the solver knows of rows that end as stalled, at a finite point, so that it can go on with them.
    resumed
        Such a pause, of all rows: the solver goes on with it, and not from the start.
    """

    pace: Pace | None = None
    latest: Float[Tensor, "B D"] | None = None
    pauses: list[Pause] | None = None
    resumed: Pause | None = None

    def leave(
        self,
        solver: _Pausing,
        rows: NDArray[np.int64],
        finished: NDArray[np.bool_],
        stalled: NDArray[np.bool_],
        at: Evaluated,
        state: Any,
    ) -> None:
        """Note the last values of rows that have finished, and pause those of them that are stalled.

        Parameters
        ----------
        solver
            The solver.
        rows
            Shape ``(k,)``: which rows of the solve the point and the state have.
        finished, stalled
            Shape ``(k,)``: those that have finished in this round, and those of them stalled at a finite point.
        at, state
            The point, and the state after it.
        """
        places = np.flatnonzero(finished)
        if self.latest is not None and len(places):
            device = at.fz.device
            values = at.fz.index_select(0, to_device(places, device))
            self.latest.index_copy_(0, to_device(rows[places], device), values)
        places = np.flatnonzero(stalled)
        if self.pauses is not None and len(places):
            index = to_device(places, at.z.device)
            self.pauses.append(Pause(rows[places], copy_rows(at, index, places), solver.paused(state, index)))


def joined(pauses: Sequence[Pause], rows: NDArray[np.int64]) -> Pause | None:
    """Return those of the rows that are paused as one pause; None if none is."""
    if len(pauses) == 1 and np.array_equal(pauses[0].rows, rows):
        return pauses[0]  # a history need not be copied
    parts = []
    for pause in pauses:
        places = np.flatnonzero(np.isin(pause.rows, rows))
        if len(places):
            kept = copy_rows((pause.at, pause.state), to_device(places, pause.at.z.device))
            parts.append((pause.rows[places], kept))
    if not parts:
        return None
    found = np.concatenate([part for part, _ in parts])
    order = np.argsort(found)
    at, state = join_rows([kept for _, kept in parts], to_device(order, pauses[0].at.z.device))
    return Pause(found[order], at, state)


def without_rows(pauses: Sequence[Pause], rows: NDArray[np.int64]) -> list[Pause]:
    """Return the pauses without some rows."""
    rest = (joined([pause], np.setdiff1d(pause.rows, rows)) for pause in pauses)
    return [pause for pause in rest if pause is not None]
