"""Reads and writes JSON files that carry a checksum, the records and the description of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from fixedpoint.execution.plain import digest, json_text, one_line, printable

__all__ = [
    "SCHEMA",
    "DamagedError",
    "Label",
    "Lines",
    "Number",
    "parse_model",
    "sealed",
    "unsealed",
]

SCHEMA = 1
"""Version of the format of records and of ``run.json``."""

M = TypeVar("M", bound=BaseModel)


def _number(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value


Number = Annotated[float, BeforeValidator(_number)]
"""A float. JSON has no NaN and infinities, so ``json_text`` writes them as ``"nan"``, ``"inf"`` and ``"-inf"``."""


_LONGEST_LABEL = 1000


def _label(value: Any) -> Any:
    return one_line(value, _LONGEST_LABEL) if isinstance(value, str) else value


def _lines(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


Label = Annotated[str, BeforeValidator(_label)]
"""A text that is shown in one line: control characters are written as escapes, and its end is cut off if it is long."""

Lines = Annotated[str, BeforeValidator(_lines)]
"""A text of several lines: other control characters are written as escapes."""


class DamagedError(ValueError):
    """A file of a run folder cannot be used; the message says why."""


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
    except (ValueError, RecursionError):  # no JSON, no UTF-8, or nested without end
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
