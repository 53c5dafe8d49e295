"""Files that are written whole or not at all, and JSON that every reader can read."""

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
"""Version of the form of records and of ``run.json``."""

M = TypeVar("M", bound=BaseModel)

TEMPORARY = ".*.fixedpoint-part"
"""Names of files that are being written, or were when their process was killed."""


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


Number = Annotated[float, BeforeValidator(_number)]
"""A number as ``json_text`` writes it."""


class DamagedError(ValueError):
    """A file of a run folder cannot be used; the sentence says why."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that whoever looks sees the old one or the new one, never a part of it.

    Raises
    ------
    OSError
        Naming that file, whatever part of writing it failed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.fixedpoint-part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # an interrupt, too, must not leave half a file behind
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def sealed(data: Mapping[str, Any]) -> bytes:
    """The content of a file of facts: JSON for people, with a checksum of what it says."""
    return (json_text({**data, "checksum": _checksum(data)}, canonical=False) + "\n").encode()


def unsealed(content: bytes, version: int) -> dict[str, Any]:
    """What a sealed file says, its checksum left out.

    Raises
    ------
    DamagedError
        When it is cut off, changed, no JSON, or has the form of another ``schema_version``.
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
    """``data`` as a model.

    Raises
    ------
    DamagedError
        Naming the first thing that is wrong.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedError(f"does not have the right form ({place or 'all of it'}: {first['msg']})") from None
