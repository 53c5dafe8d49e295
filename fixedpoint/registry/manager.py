"""The plugin manager: finds plugins, lists components and commands, refuses duplicate names, builds by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pluggy

from fixedpoint.core.foreign import brief, foreign, guarded
from fixedpoint.registry import builtin, hookspecs
from fixedpoint.registry.building import build
from fixedpoint.registry.command import NAME, Command
from fixedpoint.registry.component import KINDS, Component, Kind
from fixedpoint.registry.discovery import Found, find_plugins, hook_faults
from fixedpoint.registry.faults import Broken, LoadError, RegistryError, UnknownComponentError
from fixedpoint.registry.owners import version_of

__all__ = ["Broken", "Registry", "RegistryError", "UnknownComponentError", "registry"]

_DISTRIBUTION = "fixedpoint-solvers"
_EVERY_KIND = (*KINDS, "command")


class Registry:
    """Solvers, gradient estimators, tasks, executors and commands by name.

    The first query loads the plugins named by the entry points of the group ``fixedpoint``: those of the library first,
    then the others sorted by name and distribution. The factory of a component is imported only when it is built.

    Parameters
    ----------
    discover
        Whether to load plugins from entry points. If False, the registry holds only what the library itself brings.
    """

    def __init__(self, discover: bool = True) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._brought: dict[str, dict[str, Any]] = {kind: {} for kind in _EVERY_KIND}
        self._owners: dict[tuple[str, str], str] = {}  # the labels of the plugins, by kind and name of what they bring
        self._broken: list[Broken] = []
        self._pending = discover
        if not discover:
            self._add(builtin, _BUILTIN)

    @property
    def hook(self) -> Any:
        """The hooks of all plugins. Call them with keyword arguments."""
        self._discover()
        return self._manager.hook

    def listeners(self, hook: str) -> list[Callable[..., str]]:
        """Return one function for every plugin that implements the hook of an event, e.g. ``"run_started"``.

        Called with the hook's arguments, it returns an empty string, or a sentence if the plugin raised an exception.
        No plugin keeps another from being called.
        """
        caller = getattr(self.hook, f"fixedpoint_{hook}")
        plugins = {id(each.plugin): each.plugin for each in caller.get_hookimpls()}

        def listener(plugin: Any) -> Callable[..., str]:
            others = [other for other in plugins.values() if other is not plugin]
            alone = self._manager.subset_hook_caller(caller.name, others)

            def tell(**values: Any) -> str:
                try:
                    with foreign():
                        alone(**values)
                except Exception as error:  # third-party code may raise anything
                    label = self._manager.get_name(plugin)
                    return f"the hook {caller.name} of the plugin {label} raised {brief(error)}"
                return ""

            return tell

        return [listener(plugin) for plugin in reversed(plugins.values())]

    def components(self, kind: Kind) -> dict[str, Component]:
        """Return the components of a kind by name, sorted. Some may lack an import they require."""
        self._discover()
        return dict(sorted(self._brought[kind].items()))

    def names(self, kind: Kind) -> dict[str, Component]:
        """Return the components of a kind by every name that they may be called by, aliases included, sorted."""
        found = self.components(kind).values()
        return dict(sorted((name, component) for component in found for name in component.names))

    def commands(self) -> dict[str, Command]:
        """Return all commands, those of the library and those of plugins, by name, sorted."""
        self._discover()
        return dict(sorted(self._brought["command"].items()))

    def broken(self) -> list[Broken]:
        """Return the plugins, components and commands that were found but cannot be used."""
        self._discover()
        return list(self._broken)

    def unloadable(self) -> list[Broken]:
        """Load every component and command, and return those that fail, except those whose requirements are missing."""
        self._discover()
        found = []
        for kind in _EVERY_KIND:
            for name, entry in sorted(self._brought[kind].items()):
                try:
                    if not entry.missing():
                        entry.load()
                except LoadError as error:
                    found.append(Broken(name, kind, entry.origin(), error.reason))
                except ImportError as error:  # what it requires was there a moment ago
                    found.append(Broken(name, kind, entry.origin(), brief(error)))
        return found

    def get(self, kind: Kind, name: str) -> Component:
        """Return the component of the given kind and name, which may be an alias.

        Raises
        ------
        UnknownComponentError
            If there is none. The message suggests the nearest known name.
        """
        self._discover()
        component: Component | None = self._brought[kind].get(name)
        if component is not None:
            return component
        found = self.names(kind)
        if name not in found:
            raise UnknownComponentError(kind, name, found, self.broken())
        return found[name]

    def create(self, kind: Kind, spec: Any, **options: Any) -> Any:
        """Build a component.

        Parameters
        ----------
        kind
            Kind of the component.
        spec
            A name, a mapping with ``name`` and options (nested components likewise), or an instance, which is
            returned unchanged.
        options
            Options by name; used only when ``spec`` is a name.

        Raises
        ------
        UnknownComponentError
            For an unknown name.
        TypeError
            For a mapping without a name, or an unknown option. The message suggests the nearest known one.
        OptionError
            For a value of the wrong type or out of range.
        ImportError
            If the component requires an import that is not installed.
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
        """Register a plugin for the lifetime of this process.

        Parameters
        ----------
        plugin
            A module or object that implements hooks.
        name
            Its name in messages. Default: the ``__name__`` of a module, or the name of the object's class.

        Raises
        ------
        RegistryError
            If it is already registered, if its name is taken by another plugin, if it fails to register, or if one of
            its components or commands has a name that is already taken. Nothing changes then.
        """
        self._discover()
        label = str(name or getattr(plugin, "__name__", type(plugin).__name__))
        if self._manager.is_registered(plugin):
            raise RegistryError(f"this plugin is already registered, as {self._manager.get_name(plugin)!r}")
        if self._manager.has_plugin(label):
            raise RegistryError(f"a plugin named {label!r} is already registered; pass another name=")
        before = list(self._broken)
        refused = self._add(plugin, Found(label, (label, ""), "", lambda: plugin), label)
        if refused:
            self._broken = before
            self._remove(plugin, label)
            raise RegistryError("; ".join(row.reason for row in refused))

    def unregister(self, plugin: Any) -> None:
        """Remove a plugin that :meth:`register` added, with its components and commands."""
        self._remove(plugin, self._manager.get_name(plugin))

    def add(self, kind: Kind, component: Component) -> None:
        """Register one component for the lifetime of this process, e.g. from a notebook.

        Raises
        ------
        RegistryError
            If the name is already taken; the message names both components. Also if the name is anything but lower-case
            letters, digits and single hyphens.
        """
        self._discover()
        fault = component.misstated()
        if fault:
            raise RegistryError(f"the {kind} is misstated: {fault}")
        refused = self._accept(kind, replace(component, source=component.source or "this process", kind=kind))
        if refused:
            self._broken.remove(refused)
            raise RegistryError(refused.reason)

    def _discover(self) -> None:
        if not self._pending:
            return
        # Before the imports: a plugin that queries the registry while it is imported must not start this again.
        self._pending = False
        self._add(builtin, _BUILTIN)
        found, self._broken = find_plugins()
        # The first of two equal names wins: plugins cannot take those of the library, and the order is reproducible.
        for each in sorted(found, key=lambda each: (each.source[0] != _DISTRIBUTION, each.name, each.source)):
            try:
                with guarded():
                    plugin = each.load()
            except Exception as error:  # third-party code may raise anything, and must not disable the other plugins
                self._broken.append(each.broken(brief(error)))
                continue
            if plugin is not builtin:  # already added, so that it is there even if the library is not installed
                self._add(plugin, each)

    def _add(self, plugin: Any, found: Found, label: str = "") -> list[Broken]:
        """Add a plugin with all it brings; return what was refused."""
        before = len(self._broken)
        label = label or found.label
        try:
            with guarded():
                hash(plugin)  # its hooks are found again by it
                if self._manager.is_registered(plugin):
                    raise RegistryError(f"it is the plugin {self._manager.get_name(plugin)}, which is there already")
                faults = hook_faults(plugin)
                self._manager.register(plugin, name=label)
        except Exception as error:  # as above
            reason = str(error) if isinstance(error, RegistryError) else brief(error)
            self._broken.append(found.broken(reason))
            if self._manager.has_plugin(label):  # some of its hooks were accepted before one was refused
                self._manager.unregister(name=label)
            return self._broken[before:]
        self._broken += [found.broken(fault) for fault in faults]
        for kind in _EVERY_KIND:
            try:
                with guarded():
                    hook = getattr(plugin, f"fixedpoint_{kind}s", None)
                    brought = list(hook()) if callable(hook) else []
            except Exception as error:  # as above
                self._broken.append(found.broken(brief(error), f"{kind}s"))
                continue
            for entry in brought:
                self._take(kind, entry, found, label)
        return self._broken[before:]

    def _take(self, kind: str, entry: Any, found: Found, label: str) -> None:
        """Add what a hook of a plugin returned, or a row that says why not."""
        wanted = Command if kind == "command" else Component
        try:
            with guarded():
                if not isinstance(entry, wanted):
                    raise RegistryError(f"fixedpoint_{kind}s must return {wanted.__name__.lower()}s, got {entry!r:.80}")
                fault = entry.misstated()
                if fault:
                    raise RegistryError(f"a {kind} of fixedpoint_{kind}s is misstated: {fault}")
                entry = replace(entry, source=found.source[0], version=found.source[1], kind=kind)
        except Exception as error:  # as above
            reason = str(error) if isinstance(error, RegistryError) else brief(error)
            self._broken.append(found.broken(reason, f"{kind}s"))
            return
        if self._accept(kind, entry) is None:
            self._owners[kind, entry.name] = label

    def _accept(self, kind: str, entry: Component | Command) -> Broken | None:
        """Add an entry, or return why it is refused: its name is taken, or cannot be typed in files and commands."""
        holders = {name: other for other in self._brought[kind].values() for name in other.names}
        name = next((name for name in entry.names if name in holders or not NAME.fullmatch(name)), None)
        if name is None:
            self._brought[kind][entry.name] = entry
            return None
        holder = holders.get(name)
        if holder is None:
            reason = (
                f"a {kind}'s name must be lower-case letters, digits and single hyphens, got {name!r}; "
                f"refused {entry.where()}"
            )
        else:
            reason = (
                f"the {kind} name {name!r} of {entry.source or 'this process'} is already taken by "
                f"{holder.source or 'this process'} ({holder.where()}); refused {entry.where()}"
            )
        refused = Broken(entry.name, kind, f"{entry.source} {entry.version}".strip(), reason)
        self._broken.append(refused)
        return refused

    def _remove(self, plugin: Any, label: str | None) -> None:
        """Remove a plugin with its components and commands."""
        if self._manager.is_registered(plugin):
            self._manager.unregister(plugin)
        for (kind, name), owner in list(self._owners.items()):
            if owner == label:
                del self._owners[kind, name], self._brought[kind][name]


_BUILTIN = Found("builtin", (_DISTRIBUTION, version_of(_DISTRIBUTION)), builtin.__name__, lambda: builtin)

registry = Registry()
"""The registry of this process: components and commands of all plugins, found when first asked for."""
