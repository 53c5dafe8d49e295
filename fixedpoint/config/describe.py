"""Describes a component and its options in words, for ``fixedpoint show`` and the documentation."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

from fixedpoint.config.choice import UnplainError, plain
from fixedpoint.config.words import range_words, type_words, value_words
from fixedpoint.core.foreign import brief, guarded
from fixedpoint.core.options import option_types
from fixedpoint.registry import Kind, registry
from fixedpoint.registry.component import Component
from fixedpoint.registry.faults import LoadError
from fixedpoint.registry.nesting import Choices, nested

__all__ = ["Description", "OptionRow", "describe", "option_rows"]


@dataclass(frozen=True)
class OptionRow:
    """One option in words.

    Attributes
    ----------
    name
        Its name.
    type
        Its type, e.g. ``"an integer"``.
    default
        Its default; None if the option is required.
    range
        Its bounds, e.g. ``"> 0, <= 2"``; empty if there are none.
    help
        What it does.
    """

    name: str
    type: str
    default: str | None
    range: str
    help: str


@dataclass(frozen=True)
class Description:
    """A component in words.

    Attributes
    ----------
    kind, component
        Its kind and its registry entry.
    text
        Its docstring.
    options
        Its options.
    choices
        For options that accept further options classes: the options of each class, by ``"option: class"``.
    example
        A line for a run file.
    """

    kind: Kind
    component: Component
    text: str
    options: tuple[OptionRow, ...]
    choices: dict[str, tuple[OptionRow, ...]]
    example: str


def describe(kind: Kind, name: str) -> Description:
    """Describe the component of the given kind and name.

    Raises
    ------
    UnknownComponentError
        If there is no such component.
    ImportError
        If the component requires an import that is not installed, or cannot be loaded or described.
    """
    component = registry.get(kind, name)
    factory: Any = component.load()
    choices: dict[str, tuple[OptionRow, ...]] = {}
    try:
        with guarded():
            options = option_rows(factory)
            for key in option_types(factory):
                inner = nested(factory, key)
                if isinstance(inner, Choices):
                    choices |= {f"{key}: {variant}": option_rows(cls) for variant, cls in sorted(inner.classes.items())}
    except Exception as error:  # defaults and types are code of others
        reason = f"{component.where()} has options that cannot be described: {brief(error)}"
        raise LoadError(name, component.origin(), reason) from error
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
        # A single class has no name in a run file; its options have defaults of their own, listed separately.
        return "theirs" if isinstance(inner, Choices) and len(inner.classes) == 1 else str(resolved["name"])
    return resolved if isinstance(resolved, str) else value_words(resolved)


def _example(kind: Kind, name: str, options: tuple[OptionRow, ...]) -> str:
    """A line for a run file: the component with its required options, or else with its first numeric option."""
    required = [row for row in options if row.default is None]
    simple = [row for row in options if row.default is not None and row.type in ("an integer", "a number")]
    shown = [f"{row.name}: ..." for row in required] or [f"{row.name}: {row.default}" for row in simple[:1]]
    item = f"{{{', '.join([f'name: {name}', *shown])}}}" if shown else name
    return f"executor: {item}" if kind == "executor" else f"{kind}s: [{item}]"
