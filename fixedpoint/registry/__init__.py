"""The registry of solvers, gradient estimators, tasks, executors and commands, and of the plugins that bring them.

The author of a plugin needs :class:`Component` (or, for commands, :class:`Command`), :data:`hookimpl`, and the hooks in
``fixedpoint.registry.hookspecs``.
"""

from fixedpoint.registry.command import Command, CommandError
from fixedpoint.registry.component import KINDS, Component, Kind
from fixedpoint.registry.faults import RegistryError, UnknownComponentError
from fixedpoint.registry.hookspecs import hookimpl
from fixedpoint.registry.manager import Registry, registry

__all__ = [
    "KINDS",
    "Command",
    "CommandError",
    "Component",
    "Kind",
    "Registry",
    "RegistryError",
    "UnknownComponentError",
    "hookimpl",
    "registry",
]
