"""The common base of components and commands: what is known of them before they are loaded, and what they require."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fixedpoint.core.foreign import brief, guarded
from fixedpoint.registry.faults import LoadError

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
    kind: str = field(default="", compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it may be called by."""
        return (self.name,)

    def load(self) -> Callable[..., Any]:
        """Import and return the factory.

        Raises
        ------
        ImportError
            If a required import is missing; the message names it and the command that installs it.
        LoadError
            An ``ImportError``, if the import of the factory's module fails, if the module has no such factory, or if
            the factory cannot be used. The message names the entry and its import string.
        """
        missing = self.missing()
        if missing:
            raise ImportError(f"{self.name!r} needs {', '.join(missing)}: {self.install_command()}")
        factory = self._imported(self.factory) if isinstance(self.factory, str) else self.factory
        try:
            with guarded():
                fault = self.fault(factory)
        except Exception as error:  # what a class of others is asked may raise anything
            fault = f"cannot be used: {brief(error)}"
        if fault:
            raise LoadError(self.name, self.origin(), f"{self.where()} {fault}")
        return factory

    def fault(self, factory: Callable[..., Any]) -> str:
        """Return why a factory cannot be used, e.g. ``"is no class"``; empty if it can."""
        return ""

    def misstated(self) -> str:
        """Return which attribute has a value of the wrong type, in a sentence; empty if none has."""
        values: dict[str, Any] = {**vars(self)}
        for name in ("name", "summary", "extra"):
            if not isinstance(values[name], str):
                return f"{name} must be a string, got {_shown(values[name])}"
        if not isinstance(values["factory"], str) and not callable(values["factory"]):
            return f"factory must be an import string, a class or a function, got {_shown(values['factory'])}"
        for name in values.keys() & {"references", "requires", "aliases"}:
            value = values[name]
            if not isinstance(value, (tuple, list)) or not all(isinstance(each, str) and each for each in value):
                return f"{name} must be a tuple of strings, got {_shown(value)}"
        return ""

    def _imported(self, written: str) -> Callable[..., Any]:
        module, _, attribute = written.partition(":")
        try:
            with guarded():
                loaded = importlib.import_module(module)
        except Exception as error:  # third-party code may raise anything when it is imported
            raise LoadError(self.name, self.origin(), f"{written}: {brief(error)}") from error
        try:
            with guarded():
                factory: Callable[..., Any] = getattr(loaded, attribute)
        except AttributeError as error:
            near = difflib.get_close_matches(attribute, vars(loaded), n=1)
            advice = f"; did you mean {near[0]}?" if near else ""
            reason = f"{module} has no {attribute}" if attribute else f"{written} is not package.module:Class"
            raise LoadError(self.name, self.origin(), reason + advice) from error
        except Exception as error:  # a module may define what its attributes are
            raise LoadError(self.name, self.origin(), f"{written}: {brief(error)}") from error
        return factory

    def missing(self) -> tuple[str, ...]:
        """Return the required import names that are not installed, without importing any."""
        return tuple(name for name in self.requires if not _is_there(name))

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
        module = getattr(self.factory, "__module__", None) or type(self.factory).__module__
        return f"{module}:{getattr(self.factory, '__qualname__', None) or _shown(self.factory)}"


def _is_there(name: str) -> bool:
    try:
        with guarded():
            return importlib.util.find_spec(name) is not None
    except Exception:  # the package around it is not there, or raises
        return False


def _shown(value: object) -> str:
    """The representation of a value of others, shortened."""
    try:
        with guarded():
            return f"{value!r:.80}"
    except Exception:
        return f"a {type(value).__name__}"
