"""Merges a run file with the run file that it extends."""

from __future__ import annotations

import os
from pathlib import Path as FilePath
from typing import Any

from fixedpoint.config.document import Document, parse, read_text
from fixedpoint.config.errors import ConfigError, Path, Place

__all__ = ["load_document"]


def load_document(file: str | FilePath) -> Document:
    """Read a run file, merged with the files it extends.

    Mappings are merged key by key; anything else, lists included, is replaced. The path of the extended file is
    relative to the file that names it.

    Raises
    ------
    ConfigError
        If a file is missing, is no YAML, or extends itself, directly or through another file.
    """
    return _load(FilePath(file), str(file), None, ())


def _load(
    path: FilePath, shown: str, asked: tuple[Place, Path] | None, above: tuple[tuple[FilePath, str], ...]
) -> Document:
    """Read one file and what it extends; ``asked`` is where it was named, ``above`` the files that led to it."""
    document = parse(read_text(path, shown, asked), shown)
    if not isinstance(document.data, dict) or "extends" not in document.data:
        return document
    key: Path = ("extends",)
    place = document.place(key)
    base = document.data.pop("extends")
    if not isinstance(base, str) or not base or "\0" in base:
        raise ConfigError.at(place, "must be the path of another run file", key)
    above = (*above, (FilePath(os.path.realpath(path)), shown))
    target = path.parent / base
    if FilePath(os.path.realpath(target)) in [known for known, _ in above]:
        circle = " -> ".join([*(name for _, name in above), str(target)])
        raise ConfigError.at(place, f"goes in a circle: {circle}", key)
    document.forget(key)
    return _overlay(_load(target, str(target), (place, key), above), document)


def _overlay(base: Document, top: Document) -> Document:
    if not isinstance(base.data, dict):
        found = "is empty" if base.data is None else "is no mapping"
        raise ConfigError.at(base.place(()), f"{found}, so it cannot be extended")
    merged = Document(base.data, top.file, dict(base.keys), dict(base.values), dict(base.texts))
    merged.data = _merged(merged, base.data, top.data, ())
    merged.keys.update(top.keys)
    merged.values.update(top.values)
    merged.texts.update(top.texts)
    return merged


def _merged(into: Document, base: Any, top: Any, path: Path) -> Any:
    """``top`` merged over ``base``; the places of values that are replaced are removed from the document."""
    if isinstance(base, dict) and isinstance(top, dict):
        both = dict(base)
        for key, value in top.items():
            both[key] = _merged(into, base.get(key), value, (*path, key))
        return both
    into.forget(path)
    return top
