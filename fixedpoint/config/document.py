"""Document: plain data read from YAML, with the place of every key and value.

The node graph is used, not ruamel's loaders: it gives the place of everything, and this file decides alone which
values there can be (mappings with string keys, lists, strings, numbers, true, false and null; no tags, so nothing
is ever constructed by a file).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fixedpoint.config.errors import ConfigError, Path, Place

__all__ = ["Document", "parse", "read_text"]

_TAG = "tag:yaml.org,2002:"
_AS_WRITTEN = ("str", "timestamp")
_SCALARS = ("int", "float", "bool", "null")
# Aliases may repeat a node; a file that grows beyond this many values by them is not a run file.
_MOST_VALUES = 100_000


@dataclass
class Document:
    """Data and places; a value without a place of its own stands where the nearest thing around it stands."""

    data: Any
    file: str
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)

    def place(self, path: Path, key: bool = False) -> Place:
        """Where the value at ``path`` stands, or its key."""
        if key and path in self.keys:
            return self.keys[path]
        for length in range(len(path), -1, -1):
            if path[:length] in self.values:
                return self.values[path[:length]]
        return Place(self.file)

    def forget(self, path: Path) -> None:
        """Drop the places of ``path`` and everything within."""
        for places in (self.keys, self.values):
            for known in [known for known in places if known[: len(path)] == path]:
                del places[known]


def read_text(path: FilePath, shown: str, asked: tuple[Place, Path] | None = None) -> str:
    """The text of a file.

    Parameters
    ----------
    shown
        The file's name in messages.
    asked
        Place and path of what asked for the file, when another file did.

    Raises
    ------
    ConfigError
        When it cannot be read.
    """
    place, where = asked or (Place(shown), ())
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        problem = "no such file" if asked is None else f'no such file "{shown}"'
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise ConfigError.at(place, problem, where)


def parse(text: str, file: str) -> Document:
    """The document of a YAML text; an empty one has ``data`` None.

    Raises
    ------
    ConfigError
        Where the text is no YAML, or holds something a run file has no use for.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # YAML allows to set an anchor anew; the last one counts
    try:
        root: Node | None = yaml.compose(text)
        document = Document(None, file, values={(): Place(file, 1, 1)})
        if root is not None:
            document.data = _Reader(yaml, document).value(root, (), ())
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
    """Turns nodes into data and notes the places."""

    def __init__(self, yaml: YAML, document: Document) -> None:
        self._yaml = yaml
        self._document = document
        self._count = 0

    def value(self, node: Node, path: Path, around: tuple[int, ...]) -> Any:
        """The data of a node; ``around`` are the nodes it stands in, to refuse one that holds itself."""
        place = self._place(node)
        self._document.values[path] = place
        self._count += 1
        if id(node) in around or self._count > _MOST_VALUES:
            raise ConfigError.at(place, "an alias must not repeat without end", path)
        around = (*around, id(node))
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return {key: self.value(inner, (*path, key), around) for key, inner in self._items(node, path)}
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(inner, (*path, index), around) for index, inner in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        raise ConfigError.at(place, f"the tag {node.tag} has no meaning here", path)

    def _items(self, node: MappingNode, path: Path) -> Iterator[tuple[str, Node]]:
        seen: dict[str, int] = {}
        for key_node, inner in node.value:
            place = self._place(key_node)
            if key_node.tag == f"{_TAG}merge":
                raise ConfigError.at(place, 'merge keys ("<<") are not read; use extends', path)
            if key_node.tag != f"{_TAG}str":
                shown = key_node.value if isinstance(key_node, ScalarNode) else "a list or mapping"
                raise ConfigError.at(place, f"a key must be a string, got {shown}", path)
            key: str = key_node.value
            if key in seen:
                sentence = f"the key stands here twice (first in line {seen[key]})"
                raise ConfigError.at(place, sentence, (*path, key))
            seen[key] = place.line
            self._document.keys[*path, key] = place
            yield key, inner

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        if kind in _AS_WRITTEN:
            return str(node.value)
        if kind in _SCALARS:
            try:
                return self._yaml.constructor.construct_object(node)
            except ValueError:
                raise ConfigError.at(self._place(node), f"{node.value} is no number", path) from None
        raise ConfigError.at(self._place(node), f"the tag {node.tag} has no meaning here", path)

    def _place(self, node: Node) -> Place:
        mark = node.start_mark
        return Place(self._document.file, mark.line + 1, mark.column + 1)


def _explained(problem: str) -> str:
    if r"'\t'" in problem:
        return "a tab cannot indent YAML; use spaces"
    return f"is not YAML: {' '.join(problem.split())}"
