"""The record of one cell of a run, and how it is written and read.

A record has a checksum of itself and one of its arrays. They reveal records that are truncated, changed or mixed up.
"""

from __future__ import annotations

import errno
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fixedpoint.config.bounded import MOST_ARRAYS, read_bytes, read_npz
from fixedpoint.config.files import (
    SCHEMA,
    DamagedError,
    Label,
    Lines,
    Number,
    parse_model,
    sealed,
    unsealed,
)
from fixedpoint.config.folder import MOST_JSON, Folder
from fixedpoint.config.makers import Maker
from fixedpoint.execution.plain import digest

__all__ = ["SCHEMA", "Failure", "Record", "arrays_bytes", "read_arrays", "read_record", "write_record"]

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of rows, rounds or evaluations."""

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

    type: Label
    message: Lines
    traceback: Lines


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
    labels: dict[str, Label]
    config: dict[str, Any]
    seed: int
    status: Literal["ok", "failed", "skipped"]
    reason: Lines = ""
    error: Failure | None = None
    metrics: dict[Label, Number] = {}
    rows: dict[Label, Count] = {}
    rounds: Count = 0
    evaluations: Count = 0
    seconds: Number = 0.0
    message: Lines = ""
    arrays: str = ""
    threads: int
    made_by: dict[str, Maker] = {}
    versions: dict[Label, Label]
    machine: dict[Label, Label | int]
    started: Label
    finished: Label

    @property
    def rtol(self) -> float | None:
        """The relative tolerance; None if the record has no such number."""
        termination = self.config.get("termination")
        value = termination.get("rtol") if isinstance(termination, dict) else None
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return None
        return float(value) if 0 <= value < math.inf else None


def write_record(folder: Folder, record: Record) -> None:
    """Write the record of a cell into a run folder, atomically, with its checksum."""
    folder.write(folder.record(record.hash), sealed(record.model_dump()))


def read_record(path: Path, hash: str) -> Record:
    """Read the record of the cell with the given hash.

    Raises
    ------
    FileNotFoundError
        If there is no record yet.
    DamagedError
        If the record cannot be used, or belongs to another cell.
    """
    try:
        content = read_bytes(path, MOST_JSON)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except OSError as error:
        raise DamagedError(f"cannot be read: {error.strerror}") from None
    record = parse_model(Record, unsealed(content, SCHEMA))
    if record.hash != hash:
        raise DamagedError("is that of another cell")
    return record


def arrays_bytes(arrays: Arrays) -> bytes:
    """Return arrays as the content of an ``.npz`` file, compressed. Arrays of objects raise a ``TypeError``."""
    for name, array in arrays.items():
        if array.dtype.hasobject:  # numpy would save it with pickle
            raise TypeError(f"{name} is an array of objects, wanted numbers")
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
        content = read_bytes(path, MOST_ARRAYS)
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError("is missing") from None
    except OSError as error:
        raise DamagedError(f"cannot be read: {error.strerror}") from None
    if digest(content) != record.arrays:
        raise DamagedError("was changed after it was written (its checksum does not fit)")
    try:
        return read_npz(content)
    except ValueError as error:
        raise DamagedError(str(error)) from None
