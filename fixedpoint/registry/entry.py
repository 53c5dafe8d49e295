"""What everything a plugin brings has in common: it is known before it is loaded, and says what it lacks."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RegistryEntry"]


@dataclass(frozen=True)
class RegistryEntry:
    """An entry of the registry: a :class:`Component` or a :class:`Command`, which say what each of these is there."""

    name: str
    factory: str | Callable[..., Any]
    summary: str = ""
    references: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    extra: str = ""
    source: str = field(default="", compare=False)
    version: str = field(default="", compare=False)

    def load(self) -> Callable[..., Any]:
        """The factory itself.

        Raises
        ------
        ImportError
            Naming what is missing and the command that installs it.
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
        """The required imports that are not installed; nothing is imported to find out."""
        return tuple(name for name in self.requires if importlib.util.find_spec(name) is None)

    def install_command(self) -> str:
        """The command that installs what is missing."""
        if self.extra:
            distribution = self.source if self.version else "fixedpoint-solvers"
            return f"pip install '{distribution}[{self.extra}]'"
        return "pip install " + " ".join(self.missing())

    def origin(self) -> str:
        """Where it comes from, with the version: ``"strange-package 1.2"``."""
        return f"{self.source} {self.version}".strip() or "this process"

    def where(self) -> str:
        """The import string of the factory."""
        if isinstance(self.factory, str):
            return self.factory
        return f"{self.factory.__module__}:{getattr(self.factory, '__qualname__', self.factory)}"
