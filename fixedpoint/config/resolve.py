"""Resolves the components that a run file names, nested ones included, and collects every mistake with its place."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

from fixedpoint.config.choice import Choice, resolved_options
from fixedpoint.config.document import OVERRIDE, Document
from fixedpoint.config.errors import Mistake, Path, where
from fixedpoint.config.makers import ComponentCode
from fixedpoint.config.models import wrong_options
from fixedpoint.core.foreign import brief, foreign
from fixedpoint.core.options import OptionError, Options, nearest, option_types
from fixedpoint.registry import Kind, registry
from fixedpoint.registry.building import build
from fixedpoint.registry.component import fault_of_abilities
from fixedpoint.registry.faults import unknown
from fixedpoint.registry.nesting import Choices, nested

__all__ = ["Resolver"]


class Resolver:
    """Resolves the components of one document and collects the mistakes in ``mistakes``.

    Parameters
    ----------
    document
        The document.
    remembered
        Returns, for the kind and name of a missing component, a sentence on the distribution that brought it before,
        or an empty string if that is not known.
    """

    def __init__(self, document: Document, remembered: Callable[[Kind, str], str] | None = None) -> None:
        self.document = document
        self.remembered = remembered
        self.mistakes: list[Mistake] = []

    def refuse(self, path: Path, sentence: str, key: bool = False) -> None:
        """Add a mistake at a path; if ``key`` is True, at the key instead of the value."""
        self.mistakes.append(Mistake(self.document.place(path, key), where(path), sentence))

    def component(self, kind: Kind, given: Any, path: Path) -> Choice | None:
        """Return a component, given by its name or by a mapping of name and options; None if there are mistakes."""
        parts: list[ComponentCode] = []
        config = self._component(kind, given, path, parts)
        return None if config is None else Choice(config, parts=tuple(parts))

    def options(self, cls: type[Options], given: Any, path: Path) -> dict[str, Any] | None:
        """Return every option of a class that is no component (the termination); None if there are mistakes."""
        if not isinstance(given, Mapping):
            self.refuse(path, f"must be a mapping of options, got {self.document.typed(path, given)}")
            return None
        built = self._options(cls, given, path, [])
        return None if built is None else built[1]

    def _component(self, kind: Kind, given: Any, path: Path, parts: list[ComponentCode]) -> dict[str, Any] | None:
        spec = {"name": given} if isinstance(given, str) else given
        name_path = path if isinstance(given, str) else (*path, "name")
        if not isinstance(spec, Mapping):
            got = f"got {self.document.typed(path, given)}{self.document.in_quotes(path, given)}"
            self.refuse(path, f"must be the name of {_one(kind)} or a mapping with a name, {got}")
            return None
        name = spec.get("name")
        if not isinstance(name, str):
            got = f"got {self.document.typed(name_path, name)}" if "name" in spec else "it has none"
            self.refuse(name_path, f"{_one(kind)} requires a name, {got}; known: {', '.join(registry.names(kind))}")
            return None
        known = registry.names(kind)
        if name not in known:
            self.refuse(name_path, self._unknown(kind, name, known))
            return None
        component = known[name]
        try:
            factory: Any = component.load()
        except ImportError as error:
            self.refuse(name_path, " ".join(str(error).split()))
            return None
        try:
            with foreign():
                built = self._options(factory, {key: each for key, each in spec.items() if key != "name"}, path, parts)
                if built is None:
                    return None
                instance, options = built
                fault = fault_of_abilities(instance)
                code = ComponentCode.of(instance, f"{kind} {name}", component.source, component.version)
        except Exception as error:  # types and defaults of options are code of others, too
            fault = brief(error)
        if fault:
            self.refuse(name_path, f"the {kind} {name} of {component.origin()} cannot be used: {fault}")
            return None
        parts.append(code)
        return {"name": name, **options}

    def _unknown(self, kind: Kind, name: str, known: Mapping[str, Any]) -> str:
        advice = (self.remembered and self.remembered(kind, name)) or nearest(name, known)
        return unknown(kind, name, f'"{name}"', advice, registry.broken())

    def _options(
        self, cls: type[Options], given: Mapping[str, Any], path: Path, parts: list[ComponentCode]
    ) -> tuple[Options, dict[str, Any]] | None:
        """An instance of ``cls`` and all its options as plain values, or None if there are mistakes."""
        before = len(self.mistakes)
        given = self._beside(cls, given, path)
        for inner_path, sentence in wrong_options(cls, given, self.document, path).items():
            # Of an unknown option the key is the mistake, of a known one the value.
            unknown = len(inner_path) == 1 and inner_path[0] not in option_types(cls)
            self.refuse((*path, *inner_path), sentence, key=unknown)
        resolved = {
            key: self._nested(cls, key, value, (*path, key), parts)
            for key, value in given.items()
            if key in option_types(cls) and nested(cls, key) is not None
        }
        if len(self.mistakes) > before:
            return None
        try:
            instance: Options = build(cls, {**given, **resolved}, registry.create)
        except OptionError as error:
            if error.option in option_types(cls):
                inner = (*path, error.option, *error.within)
                self.refuse(inner, error.reason, key=bool(error.within))
            else:
                self.refuse(path, str(error))
            return None
        except Exception as error:  # third-party code may raise anything for a bad option; it is reported as a mistake
            self.refuse(path, brief(error).removeprefix(f"{type(error).__name__}: "))
            return None
        return instance, resolved_options(instance, resolved)

    def _beside(self, cls: type[Options], given: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """The options, with the names of files that lie beside the run file as paths from the working directory."""
        paths = {each.name for each in dataclasses.fields(cls) if each.metadata.get("path")}  # type: ignore[arg-type]
        found = dict(given)
        for key in paths & found.keys():
            value, file = found[key], self.document.place((*path, key)).file
            if not isinstance(value, str) or file in ("", OVERRIDE):
                continue
            beside = os.path.normpath(FilePath(file).parent / value)
            if not os.path.isabs(value) and os.path.exists(beside):
                found[key] = beside
        return found

    def _nested(self, cls: type[Options], key: str, value: Any, path: Path, parts: list[ComponentCode]) -> Any:
        inner = nested(cls, key)
        assert inner is not None
        if value is None and type(None) in typing.get_args(option_types(cls)[key]):
            return None
        if not isinstance(inner, Choices):
            return self._component(inner, value, path, parts)
        if not isinstance(value, (str, Mapping)):
            names = ", ".join(sorted(inner.classes))
            got = f"got {self.document.typed(path, value)}{self.document.in_quotes(path, value)}"
            self.refuse(path, f"must be one of {names}, or a mapping with such a name, {got}")
            return None
        return self._choice(inner, value, path, parts)

    def _choice(
        self, choices: Choices, value: str | Mapping[str, Any], path: Path, parts: list[ComponentCode]
    ) -> dict[str, Any] | None:
        spec: Mapping[str, Any] = {"name": value} if isinstance(value, str) else value
        names = sorted(choices.classes)
        name = spec.get("name", names[0] if len(names) == 1 else None)
        name_path = (*path, "name") if isinstance(value, Mapping) and "name" in value else path
        if not isinstance(name, str):
            self.refuse(name_path, f"requires a name, one of {', '.join(names)}")
            return None
        if name not in choices.classes:
            self.refuse(name_path, f'unknown name "{name}"; {nearest(name, names)}')
            return None
        given = {key: inner for key, inner in spec.items() if key != "name"}
        built = self._options(choices.classes[name], given, path, parts)
        return None if built is None else {"name": name, **built[1]}


def _one(kind: Kind) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
