"""Finds out, from the type of an option, whether its value is a component, a choice of option classes, or plain."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Any

from fixedpoint.core.options import Options, nearest, option_types
from fixedpoint.core.solver import Solver
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.registry.component import Kind

__all__ = ["Choices", "nested"]

_COMPONENT_KINDS: tuple[tuple[type, Kind], ...] = ((Solver, "solver"), (GradientEstimator, "gradient"))


@dataclass(frozen=True)
class Choices:
    """The options classes that an option accepts.

    Attributes
    ----------
    classes
        The classes, by the ``name`` that selects one in a run file.
    """

    classes: dict[str, type[Options]]

    def pick(self, where: str, name: str | None) -> type[Options]:
        """Return the class of the given name, which may be None if there is only one class.

        Parameters
        ----------
        where
            The option, for messages.
        name
            The name of the class.

        Raises
        ------
        ValueError
            For an unknown or missing name. The message suggests the nearest known one.
        """
        if name is None and len(self.classes) == 1:
            return next(iter(self.classes.values()))
        if name is None:
            raise ValueError(f"{where} requires a name, one of {', '.join(sorted(self.classes))}")
        if name not in self.classes:
            raise ValueError(f"{where}: unknown name {name!r}; {nearest(name, self.classes)}")
        return self.classes[name]


def nested(factory: type, key: str) -> Kind | Choices | None:
    """Return what the option ``key`` of an options class holds.

    Returns
    -------
    Kind, Choices or None
        The kind of a registered component; the options classes it accepts; or None for a plain value.
    """
    members = _members(option_types(factory)[key])
    for base, kind in _COMPONENT_KINDS:
        if any(issubclass(member, base) for member in members):
            return kind
    choices = [member for member in members if issubclass(member, Options)]
    return Choices({choice.variant or choice.__name__: choice for choice in choices}) if choices else None


def _members(annotation: Any) -> list[type]:
    """The classes that an annotation accepts, those of unions included."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [cls for member in typing.get_args(annotation) for cls in _members(member)]
    if isinstance(origin, type):
        return [origin]
    return [annotation] if isinstance(annotation, type) else []
