"""Public names of packages that are imported at their first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["exported"]


def exported(
    package: str, names: Mapping[str, Iterable[str]], also: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` for a package whose names are imported lazily (PEP 562).

    Type checkers do not follow this, so the package also imports every name under ``TYPE_CHECKING``.

    Parameters
    ----------
    package
        The ``__name__`` of the package.
    names
        Module path to the public names that this module defines.
    also
        Public names that the package defines itself.
    """
    where = {name: module for module, group in names.items() for name in group}
    public = sorted({*where, *also})

    def attribute(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(where[name]), name)
        # Stored in the package, so that Python does not call __getattr__ for this name again.
        setattr(sys.modules[package], name, value)
        return value

    return attribute, lambda: public, public
