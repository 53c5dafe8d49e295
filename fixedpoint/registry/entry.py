"""The common base of components and commands: what is known of them before they are loaded, and what they require."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RegistryEntry"]


@dataclass(frozen=True)
class RegistryEntry:
    """An entry of the registry; see :class:`Component` and :class:`Command` for its attributes."""

    name: str
    factory: str | Callable[..., Any]
    summary: str = ""
    references: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    extra: str = ""
    source: str = field(default="", compare=False)
    version: str = field(default="", compare=False)

    def load(self) -> Callable[..., Any]:
        """Import and return the factory.

        Raises
        ------
        ImportError
            If a required import is missing. The message names it and the command that installs it. Also whatever the
            import of the factory's module raises.
        """
        missing = self.missing()
        if missing:
            raise ImportError(f"{self.name!r} needs {', '.join(missing)}: {self.install_command()}")
        if not isinstance(self.factory, str):
            return self.factory
        module, _, attribute = self.factory.partition(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return loaded

    def missing(self) -> tuple[str, ...]:
        """Return the required import names that are not installed, without importing any."""
        return tuple(name for name in self.requires if importlib.util.find_spec(name) is None)

    def install_command(self) -> str:
        """Return the shell command that installs what is missing."""
        if self.extra:
            # Without a version the entry was registered by this process, and ``source`` is no distribution.
            distribution = self.source if self.version else "fixedpoint-solvers"
            return f"pip install '{distribution}[{self.extra}]'"
        return "pip install " + " ".join(self.missing())

    def origin(self) -> str:
        """Return the distribution that brings the entry, e.g. ``"strange-package 1.2"``, or ``"this process"``."""
        return f"{self.source} {self.version}".strip() or "this process"

    def where(self) -> str:
        """Return the import string of the factory."""
        if isinstance(self.factory, str):
            return self.factory
        return f"{self.factory.__module__}:{getattr(self.factory, '__qualname__', self.factory)}"
