"""Applies ``key.path=value`` overrides to a run file. A value is set exactly as typed, or the override is refused.

The shell removes quotes before the program sees an override, and YAML then interprets parts of a text as a comment, an
anchor or a tag. A value of which YAML would silently drop or reinterpret a part is refused, and the message shows how
to type it as a string.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from ruamel.yaml import YAML, tokens
from ruamel.yaml.error import YAMLError

from fixedpoint.config.document import OVERRIDE, Document, parse
from fixedpoint.config.errors import ConfigError, Path, Place, where
from fixedpoint.core.options import nearest

__all__ = ["apply_overrides"]

_PART = re.compile(r"\.?([^.\[\]=\s]+)|\[(\d+)\]")
# Tokens that YAML does not keep as text.
_MEANINGS = {
    tokens.AnchorToken: "an anchor",
    tokens.AliasToken: "an alias",
    tokens.TagToken: "a tag",
    tokens.DirectiveToken: "a directive",
    tokens.DocumentStartToken: "the mark of a document",
    tokens.DocumentEndToken: "the mark of a document",
}


def apply_overrides(document: Document, overrides: Iterable[str]) -> None:
    """Apply overrides to a document, in place.

    A missing key of a mapping is added. An index of a list must exist. A component given by its name alone becomes a
    mapping of its name and the option.

    Parameters
    ----------
    document
        The run file.
    overrides
        ``key.path=value`` pairs, with values in YAML, e.g. ``tasks[0].batch=4`` or ``termination.rtol=1e-5``.

    Raises
    ------
    ConfigError
        If an override has no such form, if YAML would drop or reinterpret a part of its value, or if its path does not
        exist.
    """
    for override in overrides:
        target, equals, text = override.partition("=")
        path = _path_of(target)
        if not equals or not path:
            raise ConfigError.at(Place(f"override {override!r}"), "must be key.path=value, e.g. termination.rtol=1e-5")
        value = _value(text, path)
        _set(document, path, value.data)
        document.forget(path)
        document.values[path] = Place(OVERRIDE)
        document.texts.update(value.texts)
        if not isinstance(value.data, str):
            document.texts[path] = text.strip()


def _value(text: str, path: Path) -> Document:
    """The value of an override; raises ConfigError if it is no YAML, or if YAML would not keep all of it."""
    quoted = shlex.quote(f"{where(path)}={json.dumps(text, ensure_ascii=False)}")
    as_text = f"in quotes it is a string: {quoted}"
    if not text.strip():
        raise ConfigError.at(Place(OVERRIDE), "has no value; null stands for none", path)
    try:
        value = parse(text, OVERRIDE, path)
    except ConfigError as error:
        mistake = error.mistakes[0]
        hint = "" if "in quotes" in mistake.sentence else f"; {as_text}"
        sentence = f"its value cannot be read: {mistake.sentence}{hint}"
        raise ConfigError.at(Place(OVERRIDE), sentence, path) from None
    meaning = next(_meanings(text), None)
    if meaning is not None:
        raise ConfigError.at(Place(OVERRIDE), f"{text.strip()} {meaning}; {as_text}", path)
    return value


def _meanings(text: str) -> Iterator[str]:
    """What YAML would do to parts of a valid text instead of keeping them, in words."""
    end = 0
    try:
        for token in YAML(typ="safe", pure=True).scan(text):
            yield from _dropped(text, end, token.start_mark.index)
            if type(token) in _MEANINGS:
                yield f"is read as {_MEANINGS[type(token)]}"
            if isinstance(token, tokens.ScalarToken) and token.style in ("|", ">"):
                yield "is read as a block of lines"
            elif "\n" in text[token.start_mark.index : token.end_mark.index]:
                yield "would become one line"
            end = max(end, token.end_mark.index)
    except YAMLError:  # not expected: the text was parsed before
        return
    yield from _dropped(text, end, len(text))


def _dropped(text: str, begin: int, end: int) -> Iterator[str]:
    """A message on the comment, if any, between two tokens, which otherwise have only white space between them."""
    _, sign, comment = text[begin:end].partition("#")
    if sign:
        dropped = f"#{comment.splitlines()[0] if comment else ''}".strip()
        whole = dropped == text.strip()
        yield "is a comment and would be dropped" if whole else f"would be cut off at {dropped}, which is a comment"


def _path_of(text: str) -> Path:
    """The path that a text such as ``tasks[0].batch`` or ``tasks.0.batch`` spells; empty if it spells none."""
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
    """Set the value at a path, creating missing mappings on the way."""
    if not isinstance(document.data, dict):
        return  # validation refuses the whole file later, with its place
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
                    raise ConfigError.at(Place(OVERRIDE), f"there is no {part}; {nearest(part, holder)}", path)
                holder[part] = {}
                document.values[path[: depth + 1]] = Place(OVERRIDE)
            elif not at_end and isinstance(holder[part], str):
                holder[part] = {"name": holder[part]}
        else:
            _refuse(path[:depth], part, "is neither a mapping nor a list")
        if at_end:
            holder[part] = value
        else:
            holder = holder[part]


def _refuse(path: Path, part: str | int, sentence: str) -> NoReturn:
    raise ConfigError.at(Place(OVERRIDE), f"{where(path)} {sentence}", (*path, part))
