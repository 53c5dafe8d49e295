"""Describes types, ranges and values in words, for messages and for ``fixedpoint show``."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fixedpoint.execution.plain import is_printable

__all__ = ["label_broken", "name_broken", "range_words", "type_words", "value_words"]

_PLAIN: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "null",
}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
_BOUND_WORDS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}
_LONGEST = 60
_LONGEST_LABEL = 200
# Names of files have at most 255 bytes; some are made of a name and an ending.
_LONGEST_NAME = 200


def type_words(annotation: Any) -> str:
    """Return a type in words: ``int`` is ``an integer``, ``tuple[int, ...]`` is ``a list (each an integer)``."""
    origin = typing.get_origin(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Literal:
        return "one of " + ", ".join(value_words(choice) for choice in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_words(member) for member in typing.get_args(annotation))
    if origin in (tuple, list):
        members = [member for member in typing.get_args(annotation) if member is not Ellipsis]
        if set(members) == {Any}:
            return "a list"
        alike = len(set(members)) == 1
        return f"a list (each {type_words(members[0])})" if alike else f"a list of {_listed(members)}"
    kind = origin or annotation
    if kind is Any:
        return "anything"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping"
    if isinstance(kind, type) and issubclass(kind, Sequence):
        return "a list"
    return f"a {getattr(kind, '__name__', kind)} (from Python only)"


def _listed(members: list[Any]) -> str:
    return ", ".join(type_words(member) for member in members)


def range_words(metadata: Mapping[str, Any]) -> str:
    """Return the bounds of an option, e.g. ``> 0, <= 2``; empty if it has none."""
    return ", ".join(f"{sign} {metadata[key]:g}" for key, sign in _BOUNDS if key in metadata)


def bound_broken(metadata: Mapping[str, Any], value: float) -> str:
    """Return the bounds that ``value`` violates, e.g. ``at least 1``; empty if it violates none."""
    kept = {
        "ge": lambda bound: value >= bound,
        "gt": lambda bound: value > bound,
        "le": lambda bound: value <= bound,
        "lt": lambda bound: value < bound,
    }
    broken = [
        f"{_BOUND_WORDS[key]} {metadata[key]:g}" for key in kept if key in metadata and not kept[key](metadata[key])
    ]
    return " and ".join(broken)


def label_broken(label: str) -> str:
    """Return what a label violates, as a sentence; empty if it can be shown in one line everywhere."""
    if len(label) > _LONGEST_LABEL:
        return f"must have at most {_LONGEST_LABEL} characters, got {len(label):,}"
    odd = next((c for c in label if not is_printable(c)), None)
    return f"must be one line of printable characters, got {ascii(odd)[1:-1]} in it" if odd is not None else ""


def name_broken(name: str) -> str:
    """Return why a text cannot name a run and its folder in ``runs``, as a sentence; empty if it can."""
    wrong = label_broken(name)
    if wrong:
        return wrong
    if name in (".", "..") or "/" in name or "\\" in name:
        return f"must be a name and no path, got {value_words(name)}; --output chooses another folder"
    return f"must have at most {_LONGEST_NAME} bytes" if len(name.encode()) > _LONGEST_NAME else ""


def value_words(value: Any) -> str:
    """Return a value as it is written in YAML; lists, mappings and long strings by their type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= _LONGEST else "a long string"
    return repr(value)
