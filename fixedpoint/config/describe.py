"""What a component is and what options it has: for ``fixedpoint show`` and the docs."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

from fixedpoint.config.choice import UnplainError, plain
from fixedpoint.config.words import range_words, type_words, value_words
from fixedpoint.core.options import option_types
from fixedpoint.registry import Kind, registry
from fixedpoint.registry.component import Component
from fixedpoint.registry.nesting import Choices, nested

__all__ = ["Description", "OptionRow", "describe", "option_rows"]


@dataclass(frozen=True)
class OptionRow:
    """One option in words; ``default`` is None where the option is required."""

    name: str
    type: str
    default: str | None
    range: str
    help: str


@dataclass(frozen=True)
class Description:
    """A component in words; ``choices`` has the options of every class that one of its options admits."""

    kind: Kind
    component: Component
    text: str
    options: tuple[OptionRow, ...]
    choices: dict[str, tuple[OptionRow, ...]]
    example: str


def describe(kind: Kind, name: str) -> Description:
    """The component of that kind and name, in words.

    Raises
    ------
    UnknownComponentError, ImportError
        As the registry raises them.
    """
    component = registry.get(kind, name)
    factory: Any = component.load()
    options = option_rows(factory)
    choices: dict[str, tuple[OptionRow, ...]] = {}
    for key in option_types(factory):
        inner = nested(factory, key)
        if isinstance(inner, Choices):
            choices |= {f"{key}: {variant}": option_rows(cls) for variant, cls in sorted(inner.classes.items())}
    return Description(kind, component, inspect.getdoc(factory) or "", options, choices, _example(kind, name, options))


def option_rows(cls: Any) -> tuple[OptionRow, ...]:
    return tuple(
        OptionRow(
            name=field.name,
            type=_type_of(cls, field.name),
            default=_default_of(cls, field),
            range=range_words(field.metadata),
            help=field.metadata.get("help", ""),
        )
        for field in dataclasses.fields(cls)
        if field.init
    )


def _type_of(cls: Any, key: str) -> str:
    inner = nested(cls, key)
    if inner is None:
        return type_words(option_types(cls)[key])
    if isinstance(inner, Choices):
        return " or ".join(sorted(inner.classes)) if len(inner.classes) > 1 else "a mapping of the options below"
    return f"a {inner}"


def _default_of(cls: Any, field: dataclasses.Field[Any]) -> str | None:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return None
    try:
        resolved = plain(value, nested(cls, field.name) is not None)
    except UnplainError:
        return repr(value)
    if isinstance(resolved, dict) and "name" in resolved:
        inner = nested(cls, field.name)
        return "theirs" if isinstance(inner, Choices) and len(inner.classes) == 1 else str(resolved["name"])
    return resolved if isinstance(resolved, str) else value_words(resolved)


def _example(kind: Kind, name: str, options: tuple[OptionRow, ...]) -> str:
    """A line for a run file: the required options, or else the first one that has a plain default."""
    required = [row for row in options if row.default is None]
    simple = [row for row in options if row.default is not None and row.type in ("an integer", "a number")]
    shown = [f"{row.name}: ..." for row in required] or [f"{row.name}: {row.default}" for row in simple[:1]]
    item = f"{{{', '.join([f'name: {name}', *shown])}}}" if shown else name
    return f"executor: {item}" if kind == "executor" else f"{kind}s: [{item}]"
