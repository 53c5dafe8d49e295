"""Finds the distribution that a unit of code belongs to, and whether its version alone identifies the code."""

from __future__ import annotations

import functools
import importlib.metadata
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from fixedpoint.registry.discovery import distributions_of_plugins
from fixedpoint.registry.sources import Unit, unit_of

__all__ = ["is_released", "owner_of", "version_of"]

_SITES = ("site-packages", "dist-packages")


def owner_of(unit: Unit) -> str | None:
    """Return the distribution that a unit belongs to, or None if the metadata of installed distributions do not tell.

    They do not tell for modules that are merely on the path, nor for most editable installations, except plugins.
    """
    plugin = _plugins().get(unit.name)
    if plugin is not None:
        return plugin
    if not _is_installed(unit.path):
        return None
    owners = _packages().get(unit.name.partition(".")[0], [])
    if len(owners) > 1:  # several distributions share a namespace package: look for the one that installed the file
        holding = [name for name in owners if _holds(name, unit.path)]
        owners = holding or owners
    return owners[0] if owners else None


def is_released(unit: Unit) -> bool:
    """Return whether the version of a unit identifies its code: it is installed from a wheel and is not a plugin.

    The code of plugins is always compared, because it is what a run compares: otherwise a second build of the same
    version would go unnoticed.
    """
    return _is_installed(unit.path) and owner_of(unit) not in {None, *_plugins().values()}


def version_of(distribution: str) -> str:
    """Return the version of a distribution, or an empty string if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def _plugins() -> Mapping[str, str]:
    """The distributions of all plugins, by the name of the plugin's unit."""
    units = ((unit_of(module), distribution) for module, distribution in distributions_of_plugins().items())
    return {unit.name: distribution for unit, distribution in units if unit is not None}


@functools.cache  # reads the metadata of every installed distribution, which is slow
def _packages() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _is_installed(path: Path) -> bool:
    return bool(_sites() & set(path.parents)) or any(part in _SITES for part in path.parts)


@functools.cache
def _sites() -> frozenset[Path]:
    return frozenset(Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib"))


def _holds(distribution: str, path: Path) -> bool:
    files = importlib.metadata.distribution(distribution).files or []
    places = (Path(str(file.locate())).resolve() for file in files)
    return any(path == place or path in place.parents for place in places)
