"""The record of one cell of a run, and how it is written and read.

A record has a checksum of itself and one of its arrays. They reveal records that are truncated, changed or mixed up.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fixedpoint.config.files import (
    SCHEMA,
    DamagedError,
    Number,
    parse_model,
    sealed,
    unsealed,
    write_atomically,
)
from fixedpoint.config.makers import Maker
from fixedpoint.execution.plain import digest

__all__ = ["SCHEMA", "Failure", "Record", "arrays_bytes", "read_arrays", "read_record", "write_record"]

Arrays = Mapping[str, NDArray[np.generic]]


class Failure(BaseModel):
    """The exception that ended a cell.

    Attributes
    ----------
    type
        Name of its class.
    message
        Its message, with its notes.
    traceback
        Its traceback.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: str
    message: str
    traceback: str


class Record(BaseModel):
    """What is stored of one cell of a run, as plain values.

    Attributes
    ----------
    schema_version
        Version of the format.
    hash
        sha256 of ``config``: it identifies what was computed, independently of the labels.
    labels
        Labels of the task, the solver and the gradient estimator.
    config
        Task, solver, gradient, termination and seed with every option.
    seed
        The seed.
    status
        ``"ok"``, also if the solve did not converge; ``"failed"`` with ``error``; or ``"skipped"`` with ``reason``.
    metrics
        What the task measured, by name.
    rows
        Number of rows by status label.
    rounds
        Number of sequential evaluations.
    evaluations
        Number of evaluations of all rows together.
    seconds
        Wall-clock time of the solve in seconds.
    message
        Notes of the task, the plan of the solver if it makes one, and what the statuses mean.
    arrays
        sha256 of the file of traces and images; empty if there is none.
    threads
        Number of threads of torch.
    made_by
        The distributions it depends on, with version and code of each. Empty in old records of fixedpoint 0.1, which
        are not reused.
    versions
        Versions by distribution, Python included: for information, not compared.
    machine
        Platform, processor, number of CPUs and device.
    started, finished
        Times in UTC, in ISO 8601 format.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: int
    hash: str
    labels: dict[str, str]
    config: dict[str, Any]
    seed: int
    status: Literal["ok", "failed", "skipped"]
    reason: str = ""
    error: Failure | None = None
    metrics: dict[str, Number] = {}
    rows: dict[str, int] = {}
    rounds: int = 0
    evaluations: int = 0
    seconds: Number = 0.0
    message: str = ""
    arrays: str = ""
    threads: int
    made_by: dict[str, Maker] = {}
    versions: dict[str, str]
    machine: dict[str, str | int]
    started: str
    finished: str


def write_record(path: Path, record: Record) -> None:
    """Write a record, atomically, with its checksum."""
    write_atomically(path, sealed(record.model_dump()))


def read_record(path: Path, hash: str) -> Record:
    """Read the record of the cell with the given hash.

    Raises
    ------
    FileNotFoundError
        If there is no record yet.
    DamagedError
        If the record cannot be used, or belongs to another cell.
    """
    record = parse_model(Record, unsealed(path.read_bytes(), SCHEMA))
    if record.hash != hash:
        raise DamagedError("is that of another cell")
    return record


def arrays_bytes(arrays: Arrays) -> bytes:
    """Return arrays as the content of an ``.npz`` file, compressed."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **dict(arrays))  # type: ignore[arg-type]  # names are keywords here
    return stream.getvalue()


def read_arrays(path: Path, record: Record) -> dict[str, NDArray[Any]]:
    """Read the arrays of a record; empty if it has none.

    Raises
    ------
    DamagedError
        If the file is missing, or is not the one that was written with the record.
    """
    if not record.arrays:
        return {}
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedError("is missing") from None
    if digest(content) != record.arrays:
        raise DamagedError("was changed after it was written (its checksum does not fit)")
    with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}
