"""One run file on top of another (``extends``), and ``key.path=value`` overrides on top of both."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path as FilePath
from typing import Any, NoReturn

from fixedpoint.config.document import Document, parse, read_text
from fixedpoint.config.errors import ConfigError, Path, Place, where
from fixedpoint.core.options import nearest

__all__ = ["apply_overrides", "load_document"]

_PART = re.compile(r"\.?([^.\[\]=\s]+)|\[(\d+)\]")


def load_document(file: str | FilePath) -> Document:
    """A run file together with what it extends.

    Mappings are merged key by key, anything else is replaced; the extended file is found relative to the one that
    names it.

    Raises
    ------
    ConfigError
        When a file is missing, is no YAML or extends itself.
    """
    return _load(FilePath(file), str(file), None, ())


def _load(
    path: FilePath, shown: str, asked: tuple[Place, Path] | None, above: tuple[tuple[FilePath, str], ...]
) -> Document:
    document = parse(read_text(path, shown, asked), shown)
    if not isinstance(document.data, dict) or "extends" not in document.data:
        return document
    key: Path = ("extends",)
    place = document.place(key)
    base = document.data.pop("extends")
    if not isinstance(base, str) or not base:
        raise ConfigError.at(place, "must be the path of another run file", key)
    above = (*above, (path.resolve(), shown))
    target = path.parent / base
    if target.resolve() in [known for known, _ in above]:
        circle = " -> ".join([*(name for _, name in above), str(target)])
        raise ConfigError.at(place, f"goes in a circle: {circle}", key)
    document.forget(key)
    return _overlay(_load(target, str(target), (place, key), above), document)


def _overlay(base: Document, top: Document) -> Document:
    if not isinstance(base.data, dict):
        found = "is empty" if base.data is None else "is no mapping"
        raise ConfigError.at(base.place(()), f"{found}, so it cannot be extended")
    merged = Document(base.data, top.file, dict(base.keys), dict(base.values))
    merged.data = _merged(merged, base.data, top.data, ())
    merged.keys.update(top.keys)
    merged.values.update(top.values)
    return merged


def _merged(into: Document, base: Any, top: Any, path: Path) -> Any:
    if isinstance(base, dict) and isinstance(top, dict):
        both = dict(base)
        for key, value in top.items():
            both[key] = _merged(into, base.get(key), value, (*path, key))
        return both
    into.forget(path)
    return top


def apply_overrides(document: Document, overrides: Iterable[str]) -> None:
    """Set ``key.path=value`` pairs, values read as YAML, e.g. ``tasks[0].batch=4``, ``termination.rtol=1e-5``.

    A missing key of a mapping is added, an index must exist; a task or solver given by its bare name becomes a
    mapping with options.

    Raises
    ------
    ConfigError
        Without a position, when an override cannot be read or its path leads nowhere.
    """
    for override in overrides:
        target, equals, text = override.partition("=")
        place = Place("override")
        path = _path_of(target)
        if not equals or not path:
            raise ConfigError.at(Place(f"override {override!r}"), "must be key.path=value, e.g. termination.rtol=1e-5")
        try:
            value = parse(text, "value").data
        except ConfigError as error:
            sentence = error.mistakes[0].sentence
            raise ConfigError.at(place, f"its value cannot be read: {sentence}", path) from None
        _set(document, path, value)
        document.forget(path)
        document.values[path] = place


def _path_of(text: str) -> Path:
    path: list[str | int] = []
    position = 0
    while position < len(text):
        match = _PART.match(text, position)
        if match is None or (position == 0 and text[0] in ".["):
            return ()
        name, index = match.groups()
        if name is None or (path and name.isdecimal()):
            path.append(int(index or name))
        else:
            path.append(name)
        position = match.end()
    return tuple(path)


def _set(document: Document, path: Path, value: Any) -> None:
    if not isinstance(document.data, dict):
        return  # the file as a whole is refused, with its place, when it is validated
    holder: Any = document.data
    for depth, part in enumerate(path):
        at_end = depth == len(path) - 1
        if isinstance(holder, list):
            if not isinstance(part, int) or part >= len(holder):
                _refuse(path[:depth], part, f"has {len(holder)} item{'s'[: len(holder) != 1]}, counted from 0")
            if not at_end and isinstance(holder[part], str):
                holder[part] = {"name": holder[part]}
        elif isinstance(holder, dict):
            if isinstance(part, int):
                _refuse(path[:depth], part, "is a mapping, not a list")
            if not at_end and holder.get(part) is None:
                if isinstance(path[depth + 1], int):
                    raise ConfigError.at(Place("override"), f"there is no {part}; {nearest(part, holder)}", path)
                holder[part] = {}
                document.values[path[: depth + 1]] = Place("override")
            elif not at_end and isinstance(holder[part], str):
                holder[part] = {"name": holder[part]}
        else:
            _refuse(path[:depth], part, "is neither a mapping nor a list")
        if at_end:
            holder[part] = value
        else:
            holder = holder[part]


def _refuse(path: Path, part: str | int, sentence: str) -> NoReturn:
    raise ConfigError.at(Place("override"), f"{where(path)} {sentence}", (*path, part))
