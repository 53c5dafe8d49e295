"""Determines the makers of a record: the distributions whose code it depends on, with version and digest of each.

A result depends on the library, on torch and numpy, on the distributions that bring the components of its cell, nested
ones included, and on what their code imports. Of a distribution that is installed from a wheel and has no plugin, only
the version is stored, because it identifies the code. Plugins, editable installations and modules that are merely on
the path can change without a new version, so their files are hashed.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

import fixedpoint
from fixedpoint.config.files import Label
from fixedpoint.core.options import Options, option_types
from fixedpoint.registry.owners import is_released, owner_of, version_of
from fixedpoint.registry.sources import Unit, digest_of, imports_of, unit_of

__all__ = ["UNREADABLE", "ComponentCode", "Maker", "Makers", "changes"]

OWN = "fixedpoint"
_OWN_DISTRIBUTION = "fixedpoint-solvers"
# Packages of the library that only display results: left out of its digest.
_DISPLAY_PACKAGES = ("cli", "report")
# Distributions that display, validate and test but compute nothing: a new version of them does not change a result.
_TOOLS = {
    *(
        "beartype",
        "filelock",
        "hypothesis",
        "jaxtyping",
        "jinja2",
        "matplotlib",
        "pluggy",
        "pydantic",
        "pytest",
        "rich",
    ),
    *("ruamel.yaml", "tqdm", "typer", "typing_extensions"),
}
UNREADABLE = "unreadable"
"""Stands in place of a digest for code that is in no file, e.g. in a notebook."""


class Maker(BaseModel):
    """A distribution that took part in making a record.

    Attributes
    ----------
    version
        Its version; empty if it is no installed distribution.
    code
        sha256 of its files, and of the files of imported modules that belong to no distribution. Empty if the version
        identifies the code, ``"unreadable"`` if the code is in no file.
    units
        The digest of each package and module in ``code``, by name. Cells with other components have other units.
    brings
        The components of the cell that it brings, e.g. ``["solver anderson"]``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Label
    code: Label = ""
    units: dict[Label, Label] = {}
    brings: list[Label] = []


@dataclass(frozen=True)
class ComponentCode:
    """The code of a component that takes part in a cell.

    Attributes
    ----------
    what
        Kind and name, e.g. ``"solver anderson"``; empty for an options class that is no component.
    source, version
        Name and version of the distribution that brings it.
    classes
        Its class, the classes of the options nested in it, and all their base classes.
    uses
        Distributions that these classes declare in ``uses``: they compute with them.
    """

    what: str
    source: str
    version: str
    classes: tuple[type, ...]
    uses: tuple[str, ...]

    @classmethod
    def of(cls, instance: Options, what: str, source: str, version: str) -> ComponentCode:
        """Return the code of an instance of an options class."""
        within = list(_within(instance))
        classes = dict.fromkeys(base for each in within for base in type(each).__mro__)
        uses = dict.fromkeys(name for each in within for name in type(each).uses)
        return cls(what, source or "this process", version, tuple(classes), tuple(uses))


class Makers:
    """Finds the makers of cells. Each instance caches what it looked up, for the duration of one run."""

    def __init__(self) -> None:
        # Cached per instance: a later run in the same process must look again, e.g. after a module was reloaded.
        self.unit_of = functools.cache(unit_of)
        self.owner_of = functools.cache(owner_of)
        self.is_released = functools.cache(is_released)
        self.version_of = functools.cache(version_of)
        self.digest_of = functools.cache(digest_of)
        self.imports_of = functools.cache(imports_of)
        self.of = functools.cache(self._of)

    def _of(self, parts: tuple[ComponentCode, ...]) -> dict[str, Maker]:
        """The makers of a cell with these components, by distribution; always with the library, torch and numpy."""
        traced = _DependencyTrace(self)
        for part in parts:
            traced.add(part)
        return traced.makers()


def changes(then: Mapping[str, Maker], now: Mapping[str, Maker]) -> list[str]:
    """Return the reasons why a record cannot be reused; empty if it can.

    Parameters
    ----------
    then
        The makers of the record.
    now
        The makers that would compute the cell now.
    """
    if not then:
        return ["nothing in the record says what made it"]
    versions, others = [], []
    for name, maker in now.items():
        before = then.get(name)
        moved = [what for what in maker.brings if before is None or what not in before.brings]
        holders = {what: holder for what in moved for holder, each in then.items() if what in each.brings}
        if maker.code == UNREADABLE:
            others.append(f"the code of {name} cannot be read, so nobody knows whether it is the same")
        elif before is None:
            versions += [
                f"the {what} is now brought by {said(name, maker)}, was by {said(holder, then[holder])}"
                for what, holder in holders.items()
            ]
            if not holders:
                others.append(f"{said(name, maker)} takes part now")
        elif before.version != maker.version:
            versions.append(f"{name} is now {maker.version or 'without a version'}, was {before.version or 'without'}")
        elif before.code != maker.code:
            others.append(f"the code of {said(name, maker)} has changed")
    others += [f"{said(name, maker)} takes no part now" for name, maker in then.items() if name not in now]
    # A new version explains a change of code, so the other reasons are not listed in addition.
    return versions or others


def said(name: str, maker: Maker) -> str:
    """Return a maker in words: ``mine 1.0``."""
    return f"{name} {maker.version}".strip()


class _DependencyTrace:
    """Collects the distributions and units that the components of one cell depend on."""

    def __init__(self, look: Makers) -> None:
        self._look = look
        self._versions = {OWN: fixedpoint.__version__, "torch": str(torch.__version__), "numpy": np.__version__}
        self._units: dict[str, set[Unit]] = {OWN: set()}
        self._brings: dict[str, list[str]] = {}
        self._unreadable: set[str] = set()
        own = look.unit_of(fixedpoint.__name__)
        if own is not None:
            self._units[OWN].add(own)

    def add(self, part: ComponentCode) -> None:
        """Add a component: its own code, the code that it imports, and the distributions it declares to use."""
        source = _known_as(part.source)
        self._versions.setdefault(source, part.version)
        if part.what:
            brought = self._brings.setdefault(source, [])
            brought += [part.what] if part.what not in brought else []
        for distribution in part.uses:
            self._versions.setdefault(distribution, self._look.version_of(distribution))
        for cls in part.classes:
            self._follow(cls.__module__, source)
            if (
                self._look.unit_of(cls.__module__) is None
                and cls.__module__.partition(".")[0] not in sys.stdlib_module_names
            ):
                self._unreadable.add(source)

    def makers(self) -> dict[str, Maker]:
        """Return the makers by distribution, sorted."""
        return {
            name: self._maker(name, version, self._digests(name)) for name, version in sorted(self._versions.items())
        }

    def _follow(self, module: str, importer: str) -> None:
        """Store the unit of a module and, recursively, those of its imports, each under the distribution it belongs to.

        A unit that belongs to no distribution is stored under the distribution that imports it.
        """
        waiting = [(module, importer)]
        while waiting:
            module, importer = waiting.pop()
            unit = self._look.unit_of(module)
            if unit is None or unit in self._units[OWN]:
                continue
            owner = _known_as(self._look.owner_of(unit) or importer)
            released = self._look.is_released(unit)
            if not (released and owner.lower() in _TOOLS):
                self._versions.setdefault(owner, self._look.version_of(owner))
            if released:
                continue
            units = self._units.setdefault(owner, set())
            if unit in units:
                continue
            units.add(unit)
            if owner != OWN:  # the library's own components declare in ``uses`` what they compute with
                waiting += [(each, owner) for each in sorted(self._look.imports_of(unit))]

    def _digests(self, name: str) -> dict[str, str]:
        """The digests of the units of a distribution, by the names of the units."""
        return {
            unit.name: self._look.digest_of(unit, _DISPLAY_PACKAGES if unit.name == OWN else ())
            for unit in sorted(self._units.get(name, ()), key=lambda unit: unit.name)
        }

    def _maker(self, name: str, version: str, digests: dict[str, str]) -> Maker:
        written = "\n".join(f"{unit} {digest}" for unit, digest in digests.items())
        code = hashlib.sha256(written.encode()).hexdigest() if digests else ""
        if name in self._unreadable:
            code = UNREADABLE
        return Maker(version=version, code=code, units=digests, brings=self._brings.get(name, []))


def _within(instance: Options) -> Iterator[Options]:
    """An instance of an options class and all instances nested in its options."""
    yield instance
    for name in option_types(type(instance)):
        value = getattr(instance, name)
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, Options):
                yield from _within(each)


def _known_as(distribution: str) -> str:
    return OWN if distribution == _OWN_DISTRIBUTION else distribution
