"""Record: what is kept of one cell of a run, and how it is written and read.

A record carries a checksum of itself and of its arrays, so that one that was cut off, changed or mixed up is told
from a good one.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fixedpoint.config.files import DamagedError, Number, json_text, parse_model, write_atomically

__all__ = ["SCHEMA", "Failure", "Record", "arrays_bytes", "read_arrays", "read_record", "write_record"]

SCHEMA = 1
"""Version of the form of records and of ``run.json``."""

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
    versions: dict[str, str]
    machine: dict[str, str | int]
    started: str
    finished: str


def write_record(path: Path, record: Record) -> None:
    """Write a record, atomically, with its checksum."""
    data = record.model_dump()
    content = json_text({**data, "checksum": _checksum(data)}, canonical=False) + "\n"
    write_atomically(path, content.encode())


def read_record(path: Path, hash: str) -> Record:
    """The record of the cell of that hash.

    Raises
    ------
    FileNotFoundError
        When there is none yet.
    DamagedError
        Saying what is wrong with it.
    """
    content = path.read_bytes()
    if not content.strip():
        raise DamagedError("is empty")
    try:
        data = json.loads(content)
    except ValueError:  # no JSON, or no UTF-8
        raise DamagedError("is cut off or no JSON") from None
    if not isinstance(data, dict):
        raise DamagedError("does not have the right form (no mapping)")
    version = data.get("schema_version")
    if version != SCHEMA:
        raise DamagedError(f"has the form of another version ({version}, not {SCHEMA})")
    if data.pop("checksum", None) != _checksum(data):
        raise DamagedError("was changed after it was written (its checksum does not fit)")
    record = parse_model(Record, data)
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


def digest(content: bytes) -> str:
    """sha256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _checksum(data: Mapping[str, Any]) -> str:
    return digest(json_text(data).encode())
