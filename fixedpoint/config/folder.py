"""A run folder: which files it has, and what ``run.json`` says of the run as a whole.

config.yaml            the run file, every default filled in
run.json               which cells there are; versions, machine, times
records/<hash>.json    one record a cell
arrays/<hash>.npz      its traces and images
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fixedpoint.config.files import SCHEMA, DamagedError, Number, parse_model, sealed, unsealed, write_atomically
from fixedpoint.execution.cell import Cell

__all__ = ["CellRow", "Folder", "RunInfo"]


class CellRow(BaseModel):
    """One cell of a run: its hash (the name of its record) and what the run calls its parts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    hash: str
    task: str
    solver: str
    gradient: str | None
    seed: int

    @classmethod
    def of(cls, cell: Cell) -> CellRow:
        """The line of a cell in ``run.json``."""
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
        """All its parts in one line."""
        parts = [self.task, self.solver, *([self.gradient] if self.gradient else []), f"seed {self.seed}"]
        return " / ".join(parts)


class RunInfo(BaseModel):
    """What ``run.json`` says.

    Attributes
    ----------
    finished
        None while the run goes on, and where it was interrupted.
    reused
        How many of the cells had a record that is as good as new when the run began.
    again
        Why others were run though there was a record of them: reasons, with how many cells each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: int
    name: str
    cells: list[CellRow]
    expect: dict[str, Number]
    threads: int
    versions: dict[str, str]
    machine: dict[str, str | int]
    started: str
    finished: str | None
    reused: int = 0
    again: dict[str, int] = {}

    @property
    def story(self) -> str:
        """What was reused and what was run again, in a sentence; empty where there was nothing before."""
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


@dataclass(frozen=True)
class Folder:
    """The paths within a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved run file."""
        return self.path / "config.yaml"

    @property
    def info(self) -> Path:
        """What is said of the run as a whole."""
        return self.path / "run.json"

    def record(self, hash: str) -> Path:
        """The record of a cell."""
        return self.path / "records" / f"{hash}.json"

    def arrays(self, hash: str) -> Path:
        """The arrays of a cell."""
        return self.path / "arrays" / f"{hash}.npz"

    def write_info(self, info: RunInfo) -> None:
        """Write ``run.json``."""
        write_atomically(self.info, sealed(info.model_dump()))

    def read_info(self) -> RunInfo:
        """Read ``run.json``.

        Raises
        ------
        DamagedError
            When it is missing or cannot be used, with its path.
        """
        try:
            return parse_model(RunInfo, unsealed(self.info.read_bytes(), SCHEMA))
        except FileNotFoundError:
            raise DamagedError(f"{self.path} holds no run (it has no run.json)") from None
        except DamagedError as error:
            raise DamagedError(f"{self.info} {error}") from None
