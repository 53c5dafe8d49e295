"""Pauses: what a step solver knows of rows that it leaves to another one, and goes on with later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixedpoint.core.point import Evaluated
from fixedpoint.core.subset import copy_rows, join_rows
from fixedpoint.core.transfer import to_device

__all__ = ["Pause", "joined", "without_rows"]


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


def joined(pauses: Sequence[Pause], rows: NDArray[np.int64]) -> Pause | None:
    """Return those of the rows that are paused as one pause; None if none is."""
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
