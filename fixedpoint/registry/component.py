"""Component: what the registry knows of a solver, gradient estimator, task or executor before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fixedpoint.registry.entry import RegistryEntry

__all__ = ["KINDS", "Component", "Kind"]

Kind = Literal["solver", "gradient", "task", "executor"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Component(RegistryEntry):
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
