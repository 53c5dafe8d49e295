"""The plugin manager: finds plugins, lists components and commands, refuses collisions, builds by name."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pluggy

from fixedpoint.core.options import nearest
from fixedpoint.registry import builtin, hookspecs
from fixedpoint.registry.building import build
from fixedpoint.registry.command import Command
from fixedpoint.registry.component import KINDS, Component, Kind

__all__ = ["Broken", "Registry", "RegistryError", "UnknownComponentError", "registry"]

_DISTRIBUTION = "fixedpoint-solvers"
_EVERY_KIND = (*KINDS, "command")


class RegistryError(ValueError):
    """A plugin or component that cannot be registered."""


class UnknownComponentError(RegistryError):
    """No component of that name; the sentence names the nearest one."""

    def __init__(self, kind: Kind, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; {nearest(name, known)}")
        self.kind = kind
        self.name = name


@dataclass(frozen=True)
class Broken:
    """A plugin, or something that one brings, that cannot be used: a row of ``fixedpoint list`` that says why."""

    name: str
    kind: str
    source: str
    reason: str


class Registry:
    """Solvers, gradient estimators, tasks, executors and commands by name.

    Plugins are found through the entry points of the group ``fixedpoint`` the first time anything is asked for,
    the library's own first and the others by name; what they bring is loaded when it is built.
    """

    def __init__(self, discover: bool = True) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._brought: dict[str, dict[str, Any]] = {kind: {} for kind in _EVERY_KIND}
        self._broken: list[Broken] = []
        self._pending = discover
        if not discover:
            self._add(builtin, "builtin", _own_source())

    @property
    def hook(self) -> Any:
        """The hooks, to be called with keyword arguments."""
        self._discover()
        return self._manager.hook

    def components(self, kind: Kind) -> dict[str, Component]:
        """All usable components of a kind, by name, sorted."""
        self._discover()
        return dict(sorted(self._brought[kind].items()))

    def commands(self) -> dict[str, Command]:
        """All commands of the program, its own and those of plugins, by name, sorted."""
        self._discover()
        return dict(sorted(self._brought["command"].items()))

    def broken(self) -> list[Broken]:
        """Everything that was found but cannot be used, each with the reason."""
        self._discover()
        return list(self._broken)

    def get(self, kind: Kind, name: str) -> Component:
        """The component of that kind and name.

        Raises
        ------
        UnknownComponentError
            Naming the nearest name; or the reason, when a plugin of that name is broken.
        """
        found = self.components(kind)
        if name not in found:
            raise UnknownComponentError(kind, name, found)
        return found[name]

    def create(self, kind: Kind, spec: Any, **options: Any) -> Any:
        """Build a component.

        Parameters
        ----------
        spec
            A name, a mapping with ``name`` and options (nested components likewise), or an instance, which is
            returned as it is.
        options
            Options, when ``spec`` is a name.

        Raises
        ------
        UnknownComponentError, TypeError, OptionError
            Unknown name, unknown option (with the nearest one), or a value of wrong type or range.
        """
        if isinstance(spec, str):
            spec = {"name": spec, **options}
        if not isinstance(spec, Mapping):
            return spec
        if not isinstance(spec.get("name"), str):
            raise TypeError(f"a {kind} requires a name, got {dict(spec)!r}")
        factory = self.get(kind, spec["name"]).load()
        return build(factory, {key: value for key, value in spec.items() if key != "name"}, self.create)

    def register(self, plugin: Any, name: str | None = None) -> None:
        """Register a plugin (a module or object with hooks) of this process.

        Raises
        ------
        RegistryError
            When one of its components or commands takes a name that is taken, naming both.
        """
        self._discover()
        label = str(name or getattr(plugin, "__name__", type(plugin).__name__))
        collisions = self._add(plugin, label, (label, ""))
        if collisions:
            self._manager.unregister(plugin)
            self._broken = [row for row in self._broken if row not in collisions]
            self._forget(label)
            raise RegistryError("; ".join(row.reason for row in collisions))

    def unregister(self, plugin: Any) -> None:
        """Take back what :meth:`register` added."""
        label = self._manager.get_name(plugin)
        self._manager.unregister(plugin)
        self._forget(label)

    def add(self, kind: Kind, component: Component) -> None:
        """Register one component of this process, e.g. from a notebook.

        Raises
        ------
        RegistryError
            When the name is taken, naming both.
        """
        self._discover()
        refused = self._accept(kind, replace(component, source=component.source or "this process"))
        if refused:
            self._broken.remove(refused)
            raise RegistryError(refused.reason)

    def _discover(self) -> None:
        if not self._pending:
            return
        self._pending = False
        self._add(builtin, "builtin", _own_source())
        found = importlib.metadata.entry_points(group=hookspecs.PROJECT)
        for entry in sorted(found, key=lambda entry: (not _is_own(entry), entry.name)):
            source = _source_of(entry)
            try:
                plugin = entry.load()
            except Exception as error:  # a stranger's module may raise anything; it becomes a row with the reason
                self._broken.append(Broken(entry.name, "plugin", " ".join(source), _one_line(error)))
                continue
            if plugin is not builtin:
                self._add(plugin, entry.name, source)

    def _add(self, plugin: Any, label: str, source: tuple[str, str]) -> list[Broken]:
        before = len(self._broken)
        try:
            self._manager.register(plugin, name=label)
        except (ValueError, pluggy.PluginValidationError) as error:
            self._broken.append(Broken(label, "plugin", " ".join(source), _one_line(error)))
            return self._broken[before:]
        for kind in _EVERY_KIND:
            hook = getattr(plugin, f"fixedpoint_{kind}s", None)
            if hook is None:
                continue
            try:
                brought = list(hook())
            except Exception as error:  # as above
                self._broken.append(Broken(label, f"{kind}s", " ".join(source), _one_line(error)))
                continue
            wanted = Command if kind == "command" else Component
            for entry in brought:
                if isinstance(entry, wanted):
                    self._accept(kind, replace(entry, source=source[0], version=source[1]))
                else:
                    reason = f"fixedpoint_{kind}s must return {wanted.__name__.lower()}s, got {entry!r}"
                    self._broken.append(Broken(label, f"{kind}s", " ".join(source), reason))
        return self._broken[before:]

    def _accept(self, kind: str, entry: Component | Command) -> Broken | None:
        holder = self._brought[kind].get(entry.name)
        if holder is None:
            self._brought[kind][entry.name] = entry
            return None
        reason = (
            f"the {kind} name {entry.name!r} of {entry.source or 'this process'} is already taken by "
            f"{holder.source or 'this process'} ({holder.where()}); refused {entry.where()}"
        )
        refused = Broken(entry.name, kind, f"{entry.source} {entry.version}".strip(), reason)
        self._broken.append(refused)
        return refused

    def _forget(self, label: str | None) -> None:
        for kind, entries in self._brought.items():
            self._brought[kind] = {name: entry for name, entry in entries.items() if entry.source != label}


def _own_source() -> tuple[str, str]:
    try:
        return _DISTRIBUTION, importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return _DISTRIBUTION, ""


def _source_of(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist else (entry.value, "")


def _is_own(entry: importlib.metadata.EntryPoint) -> bool:
    return entry.dist is not None and entry.dist.name == _DISTRIBUTION


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


registry = Registry()
"""The registry of this process: components and commands of all plugins, found when first asked for."""
