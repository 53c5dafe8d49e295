"""The cells of a table of methods against chains, stored in a file so that no cell is computed twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chain_methods import TOLERANCES, History, Outcome

__all__ = ["Cell", "End", "Store", "cell_of", "reached"]

Counts = tuple[int | None, ...]


@dataclass(frozen=True)
class End:
    """The end of a method that stops by itself: the largest numbers of any image."""

    rounds: int
    evaluations: int
    error: float


@dataclass(frozen=True)
class Cell:
    """Rounds and evaluations to each tolerance, the largest of any image; None if an image never reached it."""

    rounds: Counts
    evaluations: Counts
    end: End | None = None

    @property
    def close(self) -> bool:
        """Whether the method reached the last tolerance; if it stops by itself, whether its result is within it."""
        return self.rounds[-1] is not None and (self.end is None or self.end.error <= TOLERANCES[-1])


def reached(histories: Sequence[History], tolerance: float) -> tuple[int, int] | None:
    """Rounds and evaluations after which images are, and stay, within a relative error; the largest of any image."""
    found = []
    for history in histories:
        beyond = [place for place, seen in enumerate(history) if not seen.error <= tolerance]
        first = beyond[-1] + 1 if beyond else 0
        if first == len(history):
            return None
        found.append(history[first])
    return max(seen.rounds for seen in found), max(seen.evaluations for seen in found)


def cell_of(outcome: Outcome) -> Cell | None:
    """The cell of a method for a chain; None if the method does not apply to it."""
    if not outcome.histories:
        return None
    found = [reached(outcome.histories, tolerance) for tolerance in TOLERANCES]
    rounds, evaluations = (tuple(None if f is None else f[which] for f in found) for which in (0, 1))
    if not outcome.ended:
        return Cell(rounds, evaluations)
    last = [history[-1] for history in outcome.histories]
    most = (max(seen[which] for seen in last) for which in range(3))
    return Cell(rounds, evaluations, End(*most))


class Store:
    """Stores cells in a file, by a key of everything they depend on, as one line of JSON each."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.cells: dict[str, Cell | None] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                kept = json.loads(line)
                self.cells[kept["key"]] = _read(kept["cell"])

    def get(self, key: str, find: Callable[[], Cell | None]) -> Cell | None:
        """The stored cell, or else the computed one, which is then stored."""
        if key not in self.cells:
            self.cells[key] = cell = find()
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"key": key, "cell": None if cell is None else asdict(cell)}) + "\n")
        return self.cells[key]


def _read(kept: dict[str, Any] | None) -> Cell | None:
    if kept is None:
        return None
    end = kept["end"]
    return Cell(tuple(kept["rounds"]), tuple(kept["evaluations"]), None if end is None else End(**end))
