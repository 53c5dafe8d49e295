"""Reads YAML as plain data, together with the position of every key and value in the file.

The reader walks the node graph of ruamel.yaml instead of using its loaders, for two reasons. Nodes have positions. And
this module alone decides which values are accepted: mappings with string keys, lists, strings, numbers, true, false and
null. Tags are refused, so a file cannot construct Python objects.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fixedpoint.config.bounded import read_bytes
from fixedpoint.config.errors import ConfigError, Path, Place, where
from fixedpoint.config.words import value_words

__all__ = ["OVERRIDE", "Document", "parse", "read_text"]

OVERRIDE = "override"
"""File name in the place of a value that was set by an override on the command line."""

_TAG = "tag:yaml.org,2002:"
# Scalars that stay strings: a date such as 2024-01-01 is not converted.
_AS_WRITTEN = ("str", "timestamp")
_SCALARS = ("int", "float", "bool", "null")
# Nested aliases can expand a small file exponentially. No run file has as many values as this.
_MOST_VALUES = 100_000
# Bytes of a run file. Reading more would take longer than anybody waits for a message.
_MOST_BYTES = 2**20
# Characters of a value that a message quotes.
_LONGEST_TEXT = 60
# ``010`` is ten in YAML 1.2, but eight in YAML 1.1, C and Python 2.
_LEADING_ZERO = re.compile(r"([-+]?)0[0-9_]*[0-9]")
# A comment without a space after its sign, right after the colon of a key or the dash of an item: ``label: #1``.
_TIGHT_COMMENT = re.compile(r"(?:\A\s*:|^\s*-)[ \t]+(#[^#\s][^\n]*)", re.MULTILINE)
_WRITTEN_INFINITE = re.compile(r"[-+]?\.inf", re.IGNORECASE)
# Some messages of ruamel.yaml show a token as a tuple with one item; only the item is kept.
_A_TUPLE = re.compile(r"\(('<[^()]*>'),\)")
# One half of a character that UTF-16 writes as two.
_HALF = re.compile("[\ud800-\udfff]")
_INTEGERS = 2**63
_SOME_DIGIT = re.compile(r"[1-9]")


@dataclass
class Document:
    """Plain data with the positions and the original text of its values.

    Attributes
    ----------
    data
        Mappings, lists and plain values.
    file
        Name of the file in messages.
    keys, values
        The places of keys and of values, by path.
    texts
        The text as typed of values that are no strings, by path, e.g. ``"1E234"``. For an override also of a list or
        mapping.
    """

    data: Any
    file: str
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    texts: dict[Path, str] = field(default_factory=dict)

    def place(self, path: Path, key: bool = False) -> Place:
        """Return the place of the value at ``path``, or of its key if ``key`` is True.

        For a value without a place of its own, such as a missing one, it is the place of the innermost list or mapping
        around it.
        """
        if key and path in self.keys:
            return self.keys[path]
        for length in range(len(path), -1, -1):
            if path[:length] in self.values:
                return self.values[path[:length]]
        return Place(self.file)

    def forget(self, path: Path) -> None:
        """Remove the places and texts of ``path`` and of everything within it."""
        facts: tuple[dict[Path, Any], ...] = (self.keys, self.values, self.texts)
        for known_of in facts:
            for known in [known for known in known_of if known[: len(path)] == path]:
                del known_of[known]

    def typed(self, path: Path, value: Any) -> str:
        """Return a value in words for a message, as it was typed where that is known."""
        text = self.texts.get(path)
        words = value_words(value)
        if text is None or isinstance(value, str):
            return words
        if value is None:
            return {"": "nothing", "null": "null"}.get(text, f"{text}, which is null")
        if isinstance(value, (bool, int, float)):
            return text
        return f"{text}, which is {words}" if len(text) <= _LONGEST_TEXT else words

    def in_quotes(self, path: Path, value: Any) -> str:
        """Return the end of a message that a string is expected: how to quote the value. Empty if it is a string."""
        text = self.texts.get(path)
        return "" if isinstance(value, str) or not text else f"; {self.as_text(path, text)}"

    def as_text(self, path: Path, text: str) -> str:
        """Return a hint how to write ``text`` as a string, quoted for YAML and, in an override, for the shell."""
        quoted = json.dumps(text, ensure_ascii=False)
        if self.place(path).file == OVERRIDE:
            return f"in quotes it is a string: {shlex.quote(f'{where(path)}={quoted}')}"
        key = f"{path[-1]}: " if path and isinstance(path[-1], str) else ""
        return f"in quotes it is a string: {key}{quoted}"


def read_text(path: FilePath, shown: str, asked: tuple[Place, Path] | None = None) -> str:
    """Return the text of a file.

    Parameters
    ----------
    path
        The file.
    shown
        Name of the file in messages.
    asked
        Place and path of the ``extends`` key that names the file; None for the run file itself.

    Raises
    ------
    ConfigError
        If the file cannot be read or is not UTF-8.
    """
    place, where = asked or (Place(shown), ())
    try:
        return read_bytes(path, _MOST_BYTES).decode("utf-8-sig")  # some editors on Windows write a byte order mark
    except FileNotFoundError:
        problem = "no such file" if asked is None else f'no such file "{shown}"'
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise ConfigError.at(place, problem, where)


def parse(text: str, file: str, at: Path = ()) -> Document:
    """Parse a YAML text. The data of an empty text is None.

    Parameters
    ----------
    text
        The text.
    file
        Name of the file in messages.
    at
        Path of the value that the text describes, if it is part of a larger document (an override).

    Raises
    ------
    ConfigError
        If the text is no YAML, or contains something that run files do not accept (a tag, a merge key).
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # YAML allows it; the last definition counts
    try:
        root: Node | None = yaml.compose(text)
        document = Document(None, file, values={(): Place(file, 1, 1)})
        if root is not None:
            document.data = _Reader(yaml, document, text).value(root, at, ())
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
        raise ConfigError.at(place, _explained(error.problem or error.context or "is not YAML")) from None
    except YAMLError as error:
        raise ConfigError.at(Place(file), f"is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError.at(Place(file), "is nested too deeply") from None
    return document


class _Reader:
    """Converts the nodes of one text to data and stores their places in the document."""

    def __init__(self, yaml: YAML, document: Document, text: str) -> None:
        self._yaml = yaml
        self._document = document
        self._text = text
        self._count = 0

    def value(self, node: Node, path: Path, around: tuple[int, ...]) -> Any:
        """The data of a node; ``around`` holds the ids of the enclosing nodes, to detect one that contains itself."""
        place = self._place(node)
        self._document.values[path] = place
        self._count += 1
        if id(node) in around or self._count > _MOST_VALUES:
            raise ConfigError.at(place, "an alias must not repeat without end", path)
        around = (*around, id(node))
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return {key: self._held(inner, (*path, key), around, end) for key, inner, end in self._items(node, path)}
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            ends = [node.start_mark.index, *(inner.end_mark.index for inner in node.value)]
            items = enumerate(zip(node.value, ends, strict=False))
            return [self._held(inner, (*path, index), around, end) for index, (inner, end) in items]
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        raise ConfigError.at(place, f"the tag {node.tag} has no meaning here", path)

    def _held(self, node: Node, path: Path, around: tuple[int, ...], end: int) -> Any:
        """The data of a node in a mapping or list; ``end`` is the index in the text where the previous token ends."""
        if isinstance(node, ScalarNode) and not node.value and node.style is None:
            self._check_empty(node, path, self._text[end : node.start_mark.index])
        return self.value(node, path, around)

    def _items(self, node: MappingNode, path: Path) -> Iterator[tuple[str, Node, int]]:
        """The keys and value nodes of a mapping, with the index in the text where each key ends."""
        seen: dict[str, int] = {}
        for key_node, inner in node.value:
            place = self._place(key_node)
            if key_node.tag == f"{_TAG}merge":
                raise ConfigError.at(place, 'merge keys ("<<") are not read; use extends', path)
            if key_node.tag != f"{_TAG}str":
                shown = key_node.value or "nothing" if isinstance(key_node, ScalarNode) else "a list or mapping"
                raise ConfigError.at(place, f"a key must be a string, got {shown}", path)
            key = self._text_of(key_node, path)
            if key in seen:
                sentence = f"the key stands here twice (first in line {seen[key]})"
                raise ConfigError.at(place, sentence, (*path, key))
            seen[key] = place.line
            self._document.keys[*path, key] = place
            yield key, inner, key_node.end_mark.index

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        if kind in _AS_WRITTEN:
            return self._text_of(node, path)
        if kind in _SCALARS:
            self._document.texts[path] = node.value
            try:
                value = self._yaml.constructor.construct_object(node)
            except ValueError:
                raise ConfigError.at(self._place(node), f"{node.value} is no number", path) from None
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._check_number(node, value, path)
            return value
        said = f"{node.value} has no meaning here" if kind == "merge" else f"the tag {node.tag} has no meaning here"
        raise ConfigError.at(self._place(node), said, path)

    def _text_of(self, node: ScalarNode, path: Path) -> str:
        """A string. JSON writes a character such as an emoji as a pair of halves, which are put together here."""
        text = str(node.value)
        if not _HALF.search(text):
            return text
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if "\ufffd" in joined and "\ufffd" not in text:
            sentence = f"has half of a character ({ascii(_HALF.findall(text)[0])[1:-1]}), wanted text"
            raise ConfigError.at(self._place(node), sentence, path)
        return joined

    def _check_empty(self, node: ScalarNode, path: Path, before: str) -> None:
        """Refuse an empty value before a comment without a space, as in ``label: #1``: the user meant a value."""
        comment = _TIGHT_COMMENT.search(before)
        if comment:
            text = comment[1].strip()
            sentence = f"has no value, for {text} is a comment; {self._document.as_text(path, text)}"
            place = self._document.place(path, key=True)
            raise ConfigError.at(place, sentence, path)

    def _check_number(self, node: ScalarNode, value: float, path: Path) -> None:
        """Refuse numbers that are ambiguous (``010``) or that overflow to infinity or underflow to zero."""
        typed = node.value
        if isinstance(value, int) and abs(value) >= _INTEGERS:
            sentence = f"is an integer of more than 64 bits ({len(typed)} characters)"
            raise ConfigError.at(self._place(node), sentence, path)
        octal = _LEADING_ZERO.fullmatch(typed)
        if octal:
            digits = typed.replace("_", "").lstrip("+-").lstrip("0") or "0"
            sentence = f"{typed} can be read as decimal or octal; write {octal[1]}{digits} or {octal[1]}0o{digits}"
            raise ConfigError.at(self._place(node), f"{sentence}; {self._document.as_text(path, typed)}", path)
        overflows = math.isinf(value) if isinstance(value, float) else False
        if overflows and not _WRITTEN_INFINITE.fullmatch(typed):
            sentence = f"{typed} is larger than any number; .inf is infinite"
            raise ConfigError.at(self._place(node), f"{sentence}; {self._document.as_text(path, typed)}", path)
        if value == 0 and _SOME_DIGIT.search(re.split("[eE]", typed)[0]):
            raise ConfigError.at(self._place(node), f"{typed} is so small that it would be read as 0; write 0", path)

    def _place(self, node: Node) -> Place:
        mark = node.start_mark
        return Place(self._document.file, mark.line + 1, mark.column + 1)


def _explained(problem: str) -> str:
    """A message of the YAML parser in one line."""
    if r"'\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    problem = _A_TUPLE.sub(r"\1", " ".join(problem.split()))
    return f"is not YAML: {problem}"
