"""The files of a run folder, and the content of ``run.json``, which describes the run.

config.yaml            the run file with every default filled in
run.json               the cells; versions, machine, times
records/<hash>.json    one record per cell
arrays/<hash>.npz      traces and images of the cell
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fixedpoint.config.bounded import read_bytes
from fixedpoint.config.files import SCHEMA, DamagedError, Label, Number, parse_model, sealed, unsealed
from fixedpoint.config.writing import write_atomically
from fixedpoint.execution.cell import Cell

__all__ = ["MOST_JSON", "NAMES", "CellRow", "Folder", "RunInfo", "holds_run"]

MOST_JSON = 2**26
"""Bytes that a record, ``run.json`` or ``config.yaml`` may have."""


class CellRow(BaseModel):
    """One cell of a run.

    Attributes
    ----------
    hash
        Hash of the cell, which names its record.
    task, solver, gradient
        Labels of its components; ``gradient`` is None if the cell has none.
    seed
        Its seed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    hash: str
    task: Label
    solver: Label
    gradient: Label | None
    seed: int

    @classmethod
    def of(cls, cell: Cell) -> CellRow:
        """Return the entry of a cell in ``run.json``."""
        labels = cell.labels
        return cls(
            hash=cell.hash,
            task=labels["task"],
            solver=labels["solver"],
            gradient=labels.get("gradient"),
            seed=cell.seed,
        )

    @property
    def label(self) -> str:
        """The labels and the seed in one line."""
        parts = [self.task, self.solver, *([self.gradient] if self.gradient else []), f"seed {self.seed}"]
        return " / ".join(parts)


class RunInfo(BaseModel):
    """The content of ``run.json``.

    Attributes
    ----------
    schema_version
        Version of the format.
    name
        Name of the run.
    cells
        Its cells, in the order of the plan.
    expect
        Upper bounds by metric.
    threads
        Number of threads of torch.
    versions
        Versions by distribution, Python included.
    machine
        Platform, processor, number of CPUs and device.
    started, finished
        Times in UTC, in ISO 8601 format. ``finished`` is None until the run ends, and stays so if it is interrupted.
    reused
        Number of cells whose existing records were reused.
    again
        Number of cells that were computed again although they had a record, by reason.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: int
    name: Label
    cells: list[CellRow]
    expect: dict[Label, Number]
    threads: int
    versions: dict[Label, Label]
    machine: dict[Label, Label | int]
    started: Label
    finished: Label | None
    reused: int = 0
    again: dict[Label, int] = {}

    @property
    def story(self) -> str:
        """A sentence on the cells that were reused and those that were run; empty if no cell had a record before."""
        total, again = len(self.cells), sum(self.again.values())
        if not self.reused and not again:
            return ""
        if self.reused == total:
            return f"{total} of {total} cells had their record already"
        run = total - self.reused
        reasons = [(reason, count) for reason, count in self.again.items()]
        if run > again:
            reasons.append(("new", run - again))
        said = [reason if len(reasons) == 1 else f"{count} ({reason})" for reason, count in reasons]
        cells = "cell" if total == 1 else "cells"
        return f"{total} {cells}: {self.reused} reused, {run} {'run' if self.finished else 'to run'}: {'; '.join(said)}"


# Files and folders of a run folder, and what is in the folders.
NAMES = re.compile(
    r"config\.yaml|run\.json|table\.(md|csv)|convergence\.(png|svg)|report\.html"
    r"|(learning|steps|samples|forming)-[^/]*\.(png|svg)|(records|arrays)(/.*)?"
)
_HASH = re.compile(r"[0-9a-f]{64}")


def holds_run(path: Path) -> bool:
    """Return whether a folder is that of a run, though its files may be damaged."""
    folder = Folder(path)
    with suppress(OSError):
        content = read_bytes(folder.info, MOST_JSON)
        if b'"schema_version"' in content and b'"cells"' in content:
            return True
    with suppress(OSError):
        return any(_HASH.fullmatch(name.removesuffix(".json")) for name in os.listdir(path / "records"))
    return False


@dataclass(frozen=True)
class Folder:
    """The paths in a run folder.

    Attributes
    ----------
    path
        The run folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The run file with every default filled in."""
        return self.path / "config.yaml"

    @property
    def info(self) -> Path:
        """The file ``run.json``."""
        return self.path / "run.json"

    def record(self, hash: str) -> Path:
        """Return the path of the record of a cell."""
        return self.path / "records" / f"{hash}.json"

    def arrays(self, hash: str) -> Path:
        """Return the path of the arrays of a cell."""
        return self.path / "arrays" / f"{hash}.npz"

    def write(self, path: Path, content: bytes) -> None:
        """Write a file of the folder, atomically, and not through links that lead out of it.

        Raises
        ------
        WriteError
            If it cannot be written.
        """
        write_atomically(path, content, within=self.path)

    def write_info(self, info: RunInfo) -> None:
        """Write ``run.json``, atomically."""
        self.write(self.info, sealed(info.model_dump()))

    def read_info(self) -> RunInfo:
        """Read ``run.json``.

        Raises
        ------
        DamagedError
            If it is missing or cannot be used.
        """
        try:
            info = parse_model(RunInfo, unsealed(read_bytes(self.info, MOST_JSON), SCHEMA))
            if not all(_HASH.fullmatch(cell.hash) for cell in info.cells):  # each is a part of a path
                raise DamagedError("does not have the right form (a hash is none)")
            return info
        except (FileNotFoundError, NotADirectoryError):
            raise DamagedError(f"{self.path} holds no run (it has no run.json)") from None
        except OSError as error:
            raise DamagedError(f"{self.info} cannot be read: {error.strerror}") from None
        except DamagedError as error:
            raise DamagedError(f"{self.info} {error}") from None
