"""The files of a run folder, and the content of ``run.json``, which describes the run.

config.yaml            the run file with every default filled in
run.json               the cells; versions, machine, times
records/<hash>.json    one record per cell
arrays/<hash>.npz      traces and images of the cell
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fixedpoint.config.files import SCHEMA, DamagedError, Number, parse_model, sealed, unsealed, write_atomically
from fixedpoint.execution.cell import Cell

__all__ = ["CellRow", "Folder", "RunInfo"]


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
    task: str
    solver: str
    gradient: str | None
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

    def write_info(self, info: RunInfo) -> None:
        """Write ``run.json``, atomically."""
        write_atomically(self.info, sealed(info.model_dump()))

    def read_info(self) -> RunInfo:
        """Read ``run.json``.

        Raises
        ------
        DamagedError
            If it is missing or cannot be used.
        """
        try:
            return parse_model(RunInfo, unsealed(self.info.read_bytes(), SCHEMA))
        except FileNotFoundError:
            raise DamagedError(f"{self.path} holds no run (it has no run.json)") from None
        except DamagedError as error:
            raise DamagedError(f"{self.info} {error}") from None
