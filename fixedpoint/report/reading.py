"""Reads the records of a run folder for a report. Damaged records are left out, with a notice for each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fixedpoint.config.arrays import usable
from fixedpoint.config.bounded import read_bytes
from fixedpoint.config.expectations import broken_expectations
from fixedpoint.config.files import DamagedError
from fixedpoint.config.folder import MOST_JSON, CellRow, Folder, RunInfo
from fixedpoint.config.record import Record, read_arrays, read_record
from fixedpoint.execution.plain import one_line, printable

__all__ = ["Entry", "Group", "RunData", "read_run"]

# Bytes of traces and images that are held for a report.
_MOST_BYTES = 2**30
_PICTURE = re.compile(r"(images|reference|forming)\.")


@dataclass(frozen=True)
class Entry:
    """One cell with its record.

    Attributes
    ----------
    cell
        Its entry in ``run.json``.
    record
        Its record; None if it has no usable one.
    reason
        Why there is no record.
    arrays
        The arrays of the record; empty if it has none or they are damaged.
    """

    cell: CellRow
    record: Record | None
    reason: str = ""
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """The cells that are compared with one another: those of one task and gradient estimator.

    Attributes
    ----------
    task, gradient
        Labels of the task and the gradient estimator; ``gradient`` is None if the run has none.
    entries
        The cells, in the order of the run.
    """

    task: str
    gradient: str | None
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """The label of the task and, if there is one, of the gradient estimator."""
        return f"{self.task}, {self.gradient}" if self.gradient else self.task

    @property
    def tolerance(self) -> float:
        """The relative tolerance of the run; 0 if no cell has a record."""
        for entry in self.entries:
            if entry.record is not None:
                return entry.record.rtol or 0.0
        return 0.0


@dataclass(frozen=True)
class RunData:
    """The content of a run folder.

    Attributes
    ----------
    folder
        The run folder.
    info
        Content of ``run.json``.
    config
        Text of ``config.yaml``; empty if it cannot be read.
    entries
        All cells, in the order of the plan.
    notices
        A sentence for every file that cannot be used.
    """

    folder: Folder
    info: RunInfo
    config: str
    entries: tuple[Entry, ...]
    notices: tuple[str, ...]

    @property
    def groups(self) -> list[Group]:
        """The entries by task and gradient estimator, in the order of the run."""
        found: dict[tuple[str, str | None], list[Entry]] = {}
        for entry in self.entries:
            found.setdefault((entry.cell.task, entry.cell.gradient), []).append(entry)
        return [Group(task, gradient, tuple(entries)) for (task, gradient), entries in found.items()]

    @property
    def solvers(self) -> list[str]:
        """Labels of all solvers, in the order of the run."""
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
        """A sentence for every cell that was skipped."""
        skipped = [(e.cell, e.record) for e in self.entries if e.record is not None and e.record.status == "skipped"]
        return [f"{cell.label}: skipped: {record.reason}" for cell, record in skipped]


def read_run(path: Path) -> RunData:
    """Read the run in a folder.

    Raises
    ------
    DamagedError
        If the folder has no usable ``run.json``. Damaged records raise nothing; they are named in ``notices``.
    """
    folder = Folder(path)
    info = folder.read_info()
    notices: list[str] = []
    entries = tuple(_entries(folder, info, notices))
    try:
        config = printable(read_bytes(folder.config, MOST_JSON).decode())
    except (OSError, UnicodeDecodeError):
        config = ""
        notices.append(f"{folder.config} cannot be read")
    return RunData(folder, info, config, entries, tuple(notices))


def _entries(folder: Folder, info: RunInfo, notices: list[str]) -> Iterator[Entry]:
    """The entries; of each group only those of the first seed with pictures, which alone are drawn."""
    seeds: dict[tuple[str, str | None], int] = {}
    left, without = _MOST_BYTES, 0
    for cell in info.cells:
        entry = _entry(folder, cell, notices)
        first = seeds.setdefault((cell.task, cell.gradient), cell.seed) == cell.seed
        arrays = {name: array for name, array in entry.arrays.items() if first or not _PICTURE.match(name)}
        size = sum(array.nbytes for array in arrays.values())
        if size > left:
            arrays, size, without = {}, 0, without + 1
        left -= size
        yield replace(entry, arrays=arrays)
    if without:
        more = f"more than {_MOST_BYTES // 2**20} MB of them"
        notices.append(f"the traces and images of {without} cells are left out of the report: there are {more}")


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
    kept, wrong = usable(arrays)
    notices += [f"{cell.label}: {one_line(name, 200)} is left out: it {reason}" for name, reason in wrong.items()]
    return Entry(cell, record, arrays=kept)
