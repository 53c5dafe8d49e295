"""Public names: where each one stands, imported when it is first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["exported"]


def exported(
    package: str, names: Mapping[str, Iterable[str]], also: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package (PEP 562).

    Type checkers do not follow this, so that the package names everything once more under ``TYPE_CHECKING``.

    Parameters
    ----------
    package
        Its ``__name__``.
    names
        Of every module, the names that are public.
    also
        Public names that the package has itself.
    """
    where = {name: module for module, group in names.items() for name in group}
    public = sorted({*where, *also})

    def attribute(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(where[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return attribute, lambda: public, public
