"""Choice: one component as a run file picks it, all its options filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fixedpoint.config.makers import ComponentCode
from fixedpoint.core.options import Options, option_types
from fixedpoint.registry import KINDS, registry
from fixedpoint.registry.nesting import nested

__all__ = ["Choice", "UnplainError", "is_options_class", "plain", "resolved_options"]


@dataclass(frozen=True)
class Choice:
    """A task, solver, gradient estimator or executor of a run.

    Attributes
    ----------
    config
        Its name and every option, plain values; ``registry.create(kind, config)`` builds it.
    label
        What reports call it.
    parts
        The component and the components within it, with who brought each.
    """

    config: dict[str, Any]
    label: str = ""
    parts: tuple[ComponentCode, ...] = ()


class UnplainError(TypeError):
    """A default that cannot be written to a file."""


def is_options_class(factory: Any) -> bool:
    """Whether a component is what a file can set the options of: a dataclass of options."""
    return isinstance(factory, type) and issubclass(factory, Options) and dataclasses.is_dataclass(factory)


def resolved_options(instance: Options, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a component as plain values.

    Parameters
    ----------
    given
        Options that hold components, already resolved; every other option is read from ``instance``.

    A default that cannot be written to a file is left out: building the component brings it back.
    """
    cls = type(instance)
    options: dict[str, Any] = {}
    for key in option_types(cls):
        if key in given:
            options[key] = given[key]
            continue
        try:
            options[key] = plain(getattr(instance, key), nested(cls, key) is not None)
        except UnplainError:
            continue
    return options


def plain(value: Any, holds_component: bool) -> Any:
    """A value as it is written to a file; an instance of an options class becomes its name and options.

    Raises
    ------
    UnplainError
        When it cannot be.
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
    """The name by which a file picks a class: its component's, or as one of the choices of an option."""
    written = f"{cls.__module__}:{cls.__qualname__}"
    for kind in KINDS:
        for component in registry.components(kind).values():
            if component.factory is cls or component.factory == written:
                return component.name
    return cls.variant or cls.__name__
