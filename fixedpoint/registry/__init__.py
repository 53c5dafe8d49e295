"""The registry: what solvers, gradient estimators, tasks and executors there are, and who brought them.

A plugin author needs three names: :class:`Component`, :data:`hookimpl` and the hooks of
``fixedpoint.registry.hookspecs``.
"""

from fixedpoint.registry.component import KINDS, Component, Kind
from fixedpoint.registry.hookspecs import hookimpl
from fixedpoint.registry.manager import Registry, RegistryError, UnknownComponentError, registry

__all__ = [
    "KINDS",
    "Component",
    "Kind",
    "Registry",
    "RegistryError",
    "UnknownComponentError",
    "hookimpl",
    "registry",
]
