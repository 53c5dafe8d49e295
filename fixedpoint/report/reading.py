"""Reading: the records of a run folder, damaged ones left out and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fixedpoint.config.expectations import broken_expectations
from fixedpoint.config.files import DamagedError
from fixedpoint.config.folder import CellRow, Folder, RunInfo
from fixedpoint.config.record import Record, read_arrays, read_record

__all__ = ["Entry", "Group", "RunData", "read_run"]


@dataclass(frozen=True)
class Entry:
    """One cell: its record, or why there is none, and its arrays (empty where there are none)."""

    cell: CellRow
    record: Record | None
    reason: str = ""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """The cells that are compared with one another: same task and gradient estimator, all solvers."""

    task: str
    gradient: str | None
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """What the cells have in common."""
        return f"{self.task}, {self.gradient}" if self.gradient else self.task

    @property
    def tolerance(self) -> float:
        """The relative tolerance the cells were run with (one run has one); 0 where nobody knows."""
        for entry in self.entries:
            if entry.record is not None:
                return float(entry.record.config.get("termination", {}).get("rtol", 0.0))
        return 0.0


@dataclass(frozen=True)
class RunData:
    """A run folder as it was read; ``notices`` names what could not be used."""

    folder: Folder
    info: RunInfo
    config: str
    entries: tuple[Entry, ...]
    notices: tuple[str, ...]

    @property
    def groups(self) -> list[Group]:
        """The entries by task and gradient estimator, in the order of the run."""
        keys = list(dict.fromkeys((entry.cell.task, entry.cell.gradient) for entry in self.entries))
        return [
            Group(task, gradient, tuple(e for e in self.entries if (e.cell.task, e.cell.gradient) == (task, gradient)))
            for task, gradient in keys
        ]

    @property
    def solvers(self) -> list[str]:
        """The labels of all solvers, in the order of the run."""
        return list(dict.fromkeys(entry.cell.solver for entry in self.entries))

    @property
    def seeds(self) -> list[int]:
        """All seeds, in the order of the run."""
        return list(dict.fromkeys(entry.cell.seed for entry in self.entries))

    @property
    def broken_expectations(self) -> list[str]:
        """A sentence for every expectation that does not hold."""
        judged = [(entry.cell, entry.record) for entry in self.entries if entry.record is not None]
        return broken_expectations(self.info.expect, judged)

    @property
    def failures(self) -> list[str]:
        """A sentence for every cell that failed or has no record."""
        sentences = []
        for entry in self.entries:
            record = entry.record
            if record is None:
                sentences.append(f"{entry.cell.label}: {entry.reason}")
            elif record.error is not None:
                sentences.append(f"{entry.cell.label}: failed: {record.error.type}: {record.error.message}")
        return sentences

    @property
    def skips(self) -> list[str]:
        """A sentence for every cell that could not be carried out."""
        skipped = [(e.cell, e.record) for e in self.entries if e.record is not None and e.record.status == "skipped"]
        return [f"{cell.label}: skipped: {record.reason}" for cell, record in skipped]


def read_run(path: Path) -> RunData:
    """The run in a folder.

    Raises
    ------
    DamagedError
        When the folder holds no run; damaged records are named in ``notices`` instead.
    """
    folder = Folder(path)
    info = folder.read_info()
    notices: list[str] = []
    entries = tuple(_entry(folder, cell, notices) for cell in info.cells)
    try:
        config = folder.config.read_text()
    except (OSError, UnicodeDecodeError):
        config = ""
        notices.append(f"{folder.config} cannot be read")
    return RunData(folder, info, config, entries, tuple(notices))


def _entry(folder: Folder, cell: CellRow, notices: list[str]) -> Entry:
    try:
        record = read_record(folder.record(cell.hash), cell.hash)
    except FileNotFoundError:
        return Entry(cell, None, "not run yet")
    except DamagedError as error:
        notices.append(f"{cell.label}: the record {error}; run again to compute it anew")
        return Entry(cell, None, "its record is damaged")
    try:
        arrays = read_arrays(folder.arrays(cell.hash), record)
    except DamagedError as error:
        notices.append(f"{cell.label}: the file of traces and images {error}; run again to compute it anew")
        return Entry(cell, record)
    return Entry(cell, record, arrays=arrays)
