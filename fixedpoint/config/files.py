"""Writes files atomically, and reads and writes JSON files that carry a checksum."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from fixedpoint.execution.plain import digest, json_text

__all__ = [
    "SCHEMA",
    "TEMPORARY",
    "DamagedError",
    "Number",
    "parse_model",
    "sealed",
    "unsealed",
    "write_atomically",
]

SCHEMA = 1
"""Version of the format of records and of ``run.json``."""

M = TypeVar("M", bound=BaseModel)

TEMPORARY = ".*.fixedpoint-part"
"""Glob pattern of temporary files, which remain only if the process that wrote them was killed."""


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


Number = Annotated[float, BeforeValidator(_number)]
"""A float. JSON has no NaN and infinities, so ``json_text`` writes them as ``"nan"``, ``"inf"`` and ``"-inf"``."""


class DamagedError(ValueError):
    """A file of a run folder cannot be used; the message says why."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new content, never a part of it.

    Parameters
    ----------
    path
        The file. Missing folders are created.
    content
        Its new content.

    Raises
    ------
    OSError
        If any part of writing fails. The error names ``path``, not the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.fixedpoint-part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # before the rename: a crash must not leave the name with no content
        os.replace(temporary, path)
    except BaseException as error:  # also an interrupt must not leave the temporary file
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def sealed(data: Mapping[str, Any]) -> bytes:
    """Return ``data`` as indented JSON with a checksum, as the content of a file."""
    return (json_text({**data, "checksum": _checksum(data)}, canonical=False) + "\n").encode()


def unsealed(content: bytes, version: int) -> dict[str, Any]:
    """Return the data of a file that :func:`sealed` made, without its checksum.

    Parameters
    ----------
    content
        Content of the file.
    version
        The ``schema_version`` that the data must have.

    Raises
    ------
    DamagedError
        If the content is truncated, was changed, is no JSON, or has another ``schema_version``.
    """
    if not content.strip():
        raise DamagedError("is empty")
    try:
        data = json.loads(content)
    except ValueError:  # no JSON, or no UTF-8
        raise DamagedError("is cut off or no JSON") from None
    if not isinstance(data, dict):
        raise DamagedError("does not have the right form (no mapping)")
    found = data.get("schema_version")
    if found != version:
        raise DamagedError(f"has the form of another version ({found}, not {version})")
    if data.pop("checksum", None) != _checksum(data):
        raise DamagedError("was changed after it was written (its checksum does not fit)")
    return data


def _checksum(data: Mapping[str, Any]) -> str:
    return digest(json_text(data).encode())


def parse_model(model: type[M], data: Any) -> M:
    """Validate ``data`` as an instance of a pydantic model.

    Raises
    ------
    DamagedError
        If it is invalid. The message names the first problem.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedError(f"does not have the right form ({place or 'all of it'}: {first['msg']})") from None
