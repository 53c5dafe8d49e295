"""Options that hold components or further options: what a nested value in a file stands for."""

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
    """The option classes that an option admits, by the ``name`` that picks one."""

    classes: dict[str, type[Options]]

    def pick(self, where: str, name: str | None) -> type[Options]:
        """The class of that name; the only one needs no name.

        Raises
        ------
        ValueError
            Naming the nearest name.
        """
        if name is None and len(self.classes) == 1:
            return next(iter(self.classes.values()))
        if name is None:
            raise ValueError(f"{where} requires a name, one of {', '.join(sorted(self.classes))}")
        if name not in self.classes:
            raise ValueError(f"{where}: unknown name {name!r}; {nearest(name, self.classes)}")
        return self.classes[name]


def nested(factory: type, key: str) -> Kind | Choices | None:
    """What the option ``key`` of a component class holds: a registered component, a choice of options, or a value."""
    members = _members(option_types(factory)[key])
    for base, kind in _COMPONENT_KINDS:
        if any(issubclass(member, base) for member in members):
            return kind
    choices = [member for member in members if issubclass(member, Options)]
    return Choices({choice.variant or choice.__name__: choice for choice in choices}) if choices else None


def _members(annotation: Any) -> list[type]:
    """The classes an annotation admits."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [cls for member in typing.get_args(annotation) for cls in _members(member)]
    if isinstance(origin, type):
        return [origin]
    return [annotation] if isinstance(annotation, type) else []
