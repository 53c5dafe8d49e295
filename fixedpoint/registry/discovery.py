"""Finds the entry points of plugins, loads them one by one, and says which of their hooks cannot be called.

An entry point is known by its distribution and its name: two distributions may use one name.
"""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fixedpoint.core.foreign import brief, guarded
from fixedpoint.registry import hookspecs
from fixedpoint.registry.faults import Broken
from fixedpoint.registry.hookspecs import PROJECT

__all__ = ["Found", "distributions_of_plugins", "find_plugins", "hook_faults"]

_HOOKS = tuple(name for name, value in vars(hookspecs).items() if hasattr(value, f"{PROJECT}_spec"))
# Hooks of components and commands are found by their names; those of events are called only if they are marked.
_EVENTS = ("run_started", "round", "cell_finished", "run_finished")


@dataclass(frozen=True)
class Found:
    """An entry point of a plugin.

    Attributes
    ----------
    name
        Its name.
    source
        Name and version of the distribution that brings it; without one, its module and ``""``.
    module
        The import name of its module, or ``""`` if the entry point is malformed.
    load
        Imports and returns the plugin.
    """

    name: str
    source: tuple[str, str]
    module: str
    load: Callable[[], Any]

    @property
    def label(self) -> str:
        """What tells it from all others: its distribution and its name."""
        return f"{self.source[0]}: {self.name}"

    def broken(self, reason: str, kind: str = "plugin") -> Broken:
        """Return the row that says why it, or what a hook of it returns, cannot be used."""
        return Broken(self.name, kind, " ".join(self.source).strip(), reason)


def find_plugins() -> tuple[list[Found], list[Broken]]:
    """Return the entry points of the group ``fixedpoint``, and a row for each distribution that cannot be read."""
    entries, broken = _entry_points()
    found: dict[tuple[str, str], Found] = {}
    for entry in entries:
        each = Found(str(entry.name), _source_of(entry), _module_of(entry), entry.load)
        first = found.setdefault((each.source[0], each.name), each)
        if first is not each and first.module != each.module:
            broken.append(each.broken(f"{each.source[0]} has this entry point twice; that of {first.module} is used"))
    return list(found.values()), broken


def distributions_of_plugins() -> dict[str, str]:
    """Return the distributions of all plugins, by the import name of the plugin's module."""
    found, _ = find_plugins()
    return {each.module: each.source[0] for each in found if each.module and each.source[1]}


def _entry_points() -> tuple[list[importlib.metadata.EntryPoint], list[Broken]]:
    try:
        return list(importlib.metadata.entry_points(group=PROJECT)), []
    except Exception:  # one malformed file among all distributions: the others are read one by one
        pass
    entries: list[importlib.metadata.EntryPoint] = []
    broken, seen = [], set()
    for distribution in importlib.metadata.distributions():
        name = ""
        with suppress(Exception):
            name = str(distribution.name or "")
        if name and name in seen:  # the first on the path counts, as for imports
            continue
        seen.add(name)
        try:
            entries += distribution.entry_points.select(group=PROJECT)
        except Exception as error:
            with suppress(Exception):
                if f"[{PROJECT}]" not in (distribution.read_text("entry_points.txt") or ""):
                    continue
            broken.append(Broken(name or "?", "plugin", name, f"its entry points cannot be read: {brief(error)}"))
    return entries, broken


def _source_of(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    value = str(entry.value)
    with suppress(Exception):  # the metadata may be missing or damaged
        if entry.dist is not None and entry.dist.name:
            version = ""
            with suppress(Exception):
                version = str(entry.dist.version or "")
            return str(entry.dist.name), version
    return value, ""


def _module_of(entry: importlib.metadata.EntryPoint) -> str:
    with suppress(Exception):  # malformed values have none
        return str(entry.module)
    return str(entry.value).partition(":")[0].strip()


def hook_faults(plugin: Any) -> list[str]:
    """Return what is wrong with the hooks of a plugin, a sentence each.

    Hooks that the library does not have are never called, and neither are unmarked functions for the events of a run.
    """
    said = []
    hooks = 0
    for name in dir(plugin):
        try:
            with guarded():
                value = getattr(plugin, name)
                marks = getattr(value, f"{PROJECT}_impl", None)
        except Exception:  # a property that raises is no hook
            continue
        if name in _HOOKS or (isinstance(marks, dict) and marks.get("specname") in _HOOKS):
            hooks += 1
            if not callable(value):
                said.append(f"{name} must be a function, got {type(value).__name__}")
            elif marks is None and name.removeprefix(f"{PROJECT}_") in _EVENTS:
                said.append(f"{name} is not marked with @hookimpl, so it is never called")
        elif isinstance(marks, dict) or (callable(value) and not isinstance(value, type) and _near(name)):
            said.append(f"there is no hook {name}; {_nearest_hook(name)}")
    if not hooks and not said:
        said.append(f"it has no hook, so it brings nothing; known: {', '.join(_HOOKS)}")
    return said


def _near(name: str) -> list[str]:
    """The hook that is probably meant by the name of an unmarked function; empty if none is."""
    return difflib.get_close_matches(name, _HOOKS, n=1, cutoff=0.85)


def _nearest_hook(name: str) -> str:
    near = difflib.get_close_matches(name, _HOOKS, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(_HOOKS)}"
