"""What is wrong with plugins and components: names that are unknown, and what cannot be registered or loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fixedpoint.core.options import nearest

__all__ = [
    "Broken",
    "LoadError",
    "RegistryError",
    "UnknownComponentError",
    "unknown",
    "unusable_plugins",
]


@dataclass(frozen=True)
class Broken:
    """A plugin, component or command that cannot be used; ``fixedpoint list`` shows it with the reason.

    Attributes
    ----------
    name, kind
        The name, and ``"plugin"``, a kind of component, or ``"command"``. If a hook of a plugin failed, the name is
        that of the plugin, and the kind is what the hook should have returned, e.g. ``"solvers"``.
    source
        The distribution that brings it, with its version.
    reason
        Why it cannot be used, in one line.
    """

    name: str
    kind: str
    source: str
    reason: str

    @property
    def is_plugin(self) -> bool:
        """Whether a plugin, or a hook of a plugin, cannot be used, so that what it would bring is not known."""
        return self.kind == "plugin" or self.kind.endswith("s")

    def said(self) -> str:
        """Return what cannot be used in words: ``the plugin orbits (fixedpoint-orbits 0.1.0)``."""
        what = f"the {self.kind} of the plugin" if self.is_plugin and self.kind != "plugin" else f"the {self.kind}"
        return f"{what} {self.name}{f' ({self.source})' if self.source.strip() else ''}"


class RegistryError(ValueError):
    """A plugin or component cannot be registered."""


class LoadError(ImportError):
    """A component or command cannot be loaded. The message names it and its import string.

    Parameters
    ----------
    name, origin
        The name, and the distribution that brings it.
    reason
        Why it cannot be loaded.
    """

    def __init__(self, name: str, origin: str, reason: str) -> None:
        super().__init__(f"{name} ({origin}) cannot be loaded: {reason}")
        self.reason = reason


class UnknownComponentError(RegistryError):
    """No component has the given name.

    The message suggests the nearest known name. Plugins that cannot be used may have brought the name,
    so the message adds which they are and why.

    Parameters
    ----------
    kind, name
        The kind and the name.
    known
        The known names.
    broken
        What cannot be used.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], broken: Iterable[Broken] = ()) -> None:
        super().__init__(unknown(kind, name, repr(name), nearest(name, known), broken))
        self.kind = kind
        self.name = name


def unknown(kind: str, name: str, quoted: str, advice: str, broken: Iterable[Broken]) -> str:
    """Return the message on an unknown name.

    Parameters
    ----------
    kind
        A kind of component, or ``"component"`` for any.
    name, quoted
        The name, and the name as it stands in the message.
    advice
        What to do, e.g. the nearest known name.
    broken
        What cannot be used. If the component itself is among it, the message is the reason.
    """
    rows = list(broken)
    reasons = [row.reason for row in rows if row.name == name and kind in (row.kind, "component") and not row.is_plugin]
    if reasons:
        return f"the {kind} {quoted} cannot be used: {reasons[0]}"
    plugins = unusable_plugins(kind, rows)
    if plugins and advice.startswith("known: "):  # the name is probably the plugin's, so a long list does not help
        return f"unknown {kind} {quoted}; {plugins}"
    return "; ".join(filter(None, (f"unknown {kind} {quoted}", advice, plugins)))


def unusable_plugins(kind: str, broken: Iterable[Broken]) -> str:
    """Return the plugins that cannot be used and may have brought an unknown name of this kind; or an empty string."""
    kinds = ("plugin", f"{kind}s")
    rows = [row for row in broken if row.is_plugin and (row.kind in kinds or kind == "component")]
    said = [f"{row.said()} cannot be used: {row.reason}" for row in rows]
    return "; ".join([*said, "see fixedpoint doctor"] if said else [])
