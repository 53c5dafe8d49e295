"""Record: what is kept of one cell of a run, and how it is written and read.

A record carries a checksum of itself and of its arrays, so that one that was cut off, changed or mixed up is told
from a good one.
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
    """The exception that ended a cell."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: str
    message: str
    traceback: str


class Record(BaseModel):
    """One cell of a run; host numbers only.

    Attributes
    ----------
    hash
        sha256 of ``config``: what was computed, whatever it is called.
    labels
        What the run called the task, the solver and the gradient estimator.
    config
        Task, solver, gradient, termination and seed with every option.
    status
        ``ok`` (not converging is a result), ``failed`` with ``error``, or ``skipped`` with ``reason``.
    rows
        How many rows ended with each status label.
    rounds, evaluations, seconds
        Sequential evaluations, evaluations of all rows together, wall-clock time of the solve.
    arrays
        sha256 of the file of traces and images; empty when there is none.
    made_by
        The distributions it depends on, with version and code of each; empty in records of fixedpoint 0.1 before it
        kept them, which are not reused.
    versions
        What was installed, Python included: for people, and not compared.
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
    """The record of the cell of that hash.

    Raises
    ------
    FileNotFoundError
        When there is none yet.
    DamagedError
        Saying what is wrong with it.
    """
    record = parse_model(Record, unsealed(path.read_bytes(), SCHEMA))
    if record.hash != hash:
        raise DamagedError("is that of another cell")
    return record


def arrays_bytes(arrays: Arrays) -> bytes:
    """The content of an arrays file."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **dict(arrays))  # type: ignore[arg-type]  # names are keywords here
    return stream.getvalue()


def read_arrays(path: Path, record: Record) -> dict[str, NDArray[Any]]:
    """The arrays of a record; empty when it has none.

    Raises
    ------
    DamagedError
        When the file is missing or is not the one the record was written with.
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
