"""Instances of options classes from plain values, as files and mappings have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from fixedpoint.core.options import nearest
from fixedpoint.registry.component import Kind

__all__ = ["build"]


class Create(Protocol):
    """Makes a component of a kind from its name, or from a mapping with its name and options."""

    def __call__(self, kind: Kind, spec: Any, /) -> Any: ...


def build(factory: Any, options: Mapping[str, Any], create: Create) -> Any:
    """An instance of an options class from plain values; nested components and choices are built, recursively.

    ``create`` makes the nested components: :meth:`.Registry.create`.
    """
    from fixedpoint.registry.nesting import Choices, nested  # loads torch, so not before something is built

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
    return factory(**built)
