"""Flattening nested tuples, lists and dicts of tensors, arrays or numbers, and rebuilding them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

__all__ = ["filled", "leaves", "numbered", "outline"]


@runtime_checkable
class _NamedTuple(Protocol):
    _fields: tuple[str, ...]


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its path, e.g. ``z0['a'][1]``; ``path`` is that of ``value``."""
    if isinstance(value, Mapping):
        for key in value:
            yield from leaves(value[key], f"{path}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def numbered(value: Any, counter: list[int] | None = None) -> Any:
    """Return ``value`` with every leaf replaced by its number, counted from 0."""
    counter = [0] if counter is None else counter
    if isinstance(value, Mapping):
        return {key: numbered(value[key], counter) for key in value}
    if isinstance(value, (tuple, list)):
        items = [numbered(item, counter) for item in value]
        return type(value)(*items) if isinstance(value, _NamedTuple) else type(value)(items)
    counter[0] += 1
    return counter[0] - 1


def filled(template: Any, tensors: Sequence[Any]) -> Any:
    """Return a template of :func:`numbered` with every number replaced by the tensor of that index."""
    if isinstance(template, dict):
        return {key: filled(item, tensors) for key, item in template.items()}
    if isinstance(template, (tuple, list)):
        items = [filled(item, tensors) for item in template]
        return type(template)(*items) if isinstance(template, _NamedTuple) else type(template)(items)
    return tensors[template]


def outline(value: Any, name: str) -> str:
    """Return the paths and shapes of all leaves, for error messages."""
    paths = ", ".join(f"{path} {tuple(getattr(leaf, 'shape', ()))}" for path, leaf in leaves(value, name))
    return paths or repr(value)
