"""Component: what the registry knows of a solver, gradient estimator, task or executor before it is loaded."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

__all__ = ["KINDS", "Component", "Kind"]

Kind = Literal["solver", "gradient", "task", "executor"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Component:
    """One entry of the registry.

    Attributes
    ----------
    name
        What is typed in YAML and on the command line, e.g. ``"anderson"``.
    factory
        Import string ``"package.module:Class"``, loaded on first use, or the class itself. The class is a frozen
        dataclass of options.
    summary
        One line for ``fixedpoint list``.
    references
        Papers, e.g. ``("Anderson 1965",)``.
    requires
        Import names the factory needs beyond what the base installation brings, e.g. ``("diffusers",)``.
    extra
        The extra of the distribution the component comes from that brings them, e.g. ``"diffusion"``.
    """

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
