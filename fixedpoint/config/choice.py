"""A component as chosen by a run file, with every option filled in and written as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fixedpoint.config.makers import ComponentCode
from fixedpoint.core.options import Options, option_types
from fixedpoint.registry import KINDS, registry
from fixedpoint.registry.nesting import nested

__all__ = ["Choice", "UnplainError", "plain", "resolved_options"]


@dataclass(frozen=True)
class Choice:
    """A task, solver, gradient estimator or executor of a run.

    Attributes
    ----------
    config
        Its name and every option as plain values; ``registry.create(kind, config)`` builds it.
    label
        Its name in reports.
    parts
        The component and the components nested in it, each with its code and the distribution that brings it.
    """

    config: dict[str, Any]
    label: str = ""
    parts: tuple[ComponentCode, ...] = ()


class UnplainError(TypeError):
    """A value cannot be written to a file."""


def resolved_options(instance: Options, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option of a component as plain values.

    Left out are defaults that cannot be written to a file, and those of options that were added later, since building
    the component restores them.

    Parameters
    ----------
    instance
        The component.
    given
        Plain values of the options that hold components, by name. Other options are read from ``instance``.
    """
    cls = type(instance)
    options: dict[str, Any] = {}
    added = {field.name: field.default for field in dataclasses.fields(instance) if field.metadata.get("added")}  # type: ignore[arg-type]  # every options class is a dataclass
    for key in option_types(cls):
        if key in added and getattr(instance, key) == added[key]:
            continue
        if key in given:
            options[key] = given[key]
            continue
        try:
            options[key] = plain(getattr(instance, key), nested(cls, key) is not None)
        except UnplainError:
            continue
    return options


def plain(value: Any, holds_component: bool) -> Any:
    """Return a value as it is written to a file.

    Parameters
    ----------
    value
        The value.
    holds_component
        Whether the value may be an instance of an options class, which becomes a mapping of its name and options.

    Raises
    ------
    UnplainError
        If the value cannot be written to a file.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [plain(item, holds_component) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item, False) for key, item in value.items()}
    if holds_component and isinstance(value, Options):
        return {"name": _name_of(type(value)), **resolved_options(value, {})}
    raise UnplainError(f"{value!r} cannot be written to a file")


def _name_of(cls: type[Options]) -> str:
    """The name that selects a class in a run file: that of its component, or that of its variant in an option."""
    written = f"{cls.__module__}:{cls.__qualname__}"
    for kind in KINDS:
        for component in registry.components(kind).values():
            if component.factory is cls or component.factory == written:
                return component.name
    return cls.variant or cls.__name__
