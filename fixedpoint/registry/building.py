"""Builds instances of options classes from plain values, such as those read from a run file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from fixedpoint.core.foreign import foreign
from fixedpoint.core.options import nearest
from fixedpoint.registry.component import Kind

__all__ = ["build"]


class Create(Protocol):
    """A function that makes a component of the given kind from its name, or from a mapping of its name and options."""

    def __call__(self, kind: Kind, spec: Any, /) -> Any: ...


def build(factory: Any, options: Mapping[str, Any], create: Create) -> Any:
    """Build an instance of an options class; nested components and choices are built recursively.

    Parameters
    ----------
    factory
        The options class, a dataclass.
    options
        Values by option name. A string or mapping given for an option that holds a component is built first; every
        other value is passed on unchanged.
    create
        The function that makes the nested components, e.g. :meth:`.Registry.create`.

    Raises
    ------
    TypeError
        For an unknown option. The message suggests the nearest known one.
    OptionError
        For a value of the wrong type or out of range.
    """
    from fixedpoint.registry.nesting import Choices, nested  # imports torch: deferred, so that listing stays fast

    known = [field.name for field in dataclasses.fields(factory) if field.init]
    built = {}
    for key, value in options.items():
        if key not in known:
            raise TypeError(f"{factory.__name__}: unknown option {key!r}; {nearest(key, known)}")
        inner = nested(factory, key)
        if inner is None or not isinstance(value, (str, Mapping)):
            built[key] = value
        elif isinstance(inner, Choices):
            spec = {"name": value} if isinstance(value, str) else dict(value)
            built[key] = build(inner.pick(f"{factory.__name__}: {key}", spec.pop("name", None)), spec, create)
        else:
            built[key] = create(inner, value)
    with foreign():  # the checks of its options are code of others, too
        return factory(**built)
