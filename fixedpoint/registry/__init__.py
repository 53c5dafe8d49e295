"""The registry: what solvers, gradient estimators, tasks, executors and commands there are, and who brought them.

A plugin author needs three names: :class:`Component` (for commands :class:`Command`), :data:`hookimpl` and the hooks
of ``fixedpoint.registry.hookspecs``.
"""

from fixedpoint.registry.command import Command, CommandError
from fixedpoint.registry.component import KINDS, Component, Kind
from fixedpoint.registry.hookspecs import hookimpl
from fixedpoint.registry.manager import Registry, RegistryError, UnknownComponentError, registry

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
