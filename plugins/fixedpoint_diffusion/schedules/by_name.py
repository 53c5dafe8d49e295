"""Schedulers of diffusers by the names of their classes, as run files and the command line name them.

A choice is a name, or a mapping of a ``name`` and settings: ``{name: DPMSolverMultistepScheduler, use_karras_sigmas:
true}``. The settings are those of the class's own constructor. What is not given follows the scheduler of the model, as
``from_config`` of diffusers does, so that noise levels and prediction type are those of the training.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from fixedpoint.core.options import nearest

__all__ = ["SchedulerChoice", "SchedulerError", "own_scheduler", "scheduler_class", "settings_of"]

# Types of settings whose values are compared with the annotation; others are left to the scheduler.
_PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}


class SchedulerError(ValueError):
    """A scheduler cannot be had as it was asked for; the message is a sentence without its subject.

    Attributes
    ----------
    within
        The setting that it is about; empty for the scheduler as a whole.
    """

    def __init__(self, reason: str, within: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.within = within


class SchedulerChoice(Mapping[str, Any]):
    """A scheduler's class and the settings that were given: a mapping that can be hashed, and written to a file.

    Parameters
    ----------
    given
        The name of the class, or a mapping of ``name`` and settings.

    Raises
    ------
    SchedulerError
        If there is no such class, or if it has no such setting, with the nearest name; if a value is not of the type
        that the class says; if the class requires what is not installed.
    """

    def __init__(self, given: str | Mapping[str, Any]) -> None:
        spec = {"name": given} if isinstance(given, str) else dict(given)
        name = spec.pop("name", None)
        if not isinstance(name, str):
            raise SchedulerError("requires a name, that of a scheduler of diffusers such as UniPCMultistepScheduler")
        _check_settings(scheduler_class(name), spec)
        self.name, self.settings = name, spec
        self._text = json.dumps([name, sorted(spec.items())], default=repr)

    def __getitem__(self, key: str) -> Any:
        return self.name if key == "name" else self.settings[key]

    def __iter__(self) -> Iterator[str]:
        yield "name"
        yield from self.settings

    def __len__(self) -> int:
        return 1 + len(self.settings)

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.settings.items())})"

    def build(self, own: Mapping[str, Any] | None = None) -> Any:
        """The scheduler.

        Parameters
        ----------
        own
            The configuration of the model's own scheduler, from which settings that were not given are taken; None for
            the defaults of the class.

        Raises
        ------
        SchedulerError
            If one of the two schedulers cannot be built; the message has the reason of diffusers.
        """
        cls = scheduler_class(self.name)
        base: dict[str, Any] = {}
        if own is not None:
            # Of all settings, since from_config fills in the defaults of the new class where the file has none.
            effective = dict(own_scheduler(own).config)
            base = {key: value for key, value in effective.items() if key in settings_of(cls)}
        return _built(cls, base, self.settings)


def own_scheduler(config: Mapping[str, Any]) -> Any:
    """The scheduler of a ``scheduler_config.json``; missing values take the defaults of its class.

    Raises
    ------
    SchedulerError
        If the configuration names no class of diffusers, or if it cannot be built.
    """
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise SchedulerError("does not name its class (_class_name)")
    cls = scheduler_class(name)
    known = settings_of(cls)
    return _built(cls, {key: value for key, value in config.items() if key in known}, {})


def scheduler_class(name: str) -> Any:
    """The class of that name in diffusers.

    Raises
    ------
    SchedulerError
        If there is none, with the nearest names; if it requires what is not installed.
    ModuleNotFoundError
        If diffusers is not installed.
    """
    known = _classes()
    if name not in known:
        near = _alike(name, known)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise SchedulerError(f'is no scheduler of diffusers: "{name}"; {hint}', ("name",))
    found = known[name]
    backends = getattr(found, "_backends", None)  # a stand-in of diffusers for a class that cannot be imported
    if backends is not None:
        missing = ", ".join(part for part in backends if part != "torch")
        raise SchedulerError(f"{name} requires {missing}, which is not installed: pip install {missing}", ("name",))
    return found


def _alike(name: str, known: Iterable[str]) -> list[str]:
    """At most three known names: those that contain the given one, then those that are written alike."""
    part = name.lower().removesuffix("scheduler")
    within = sorted(each for each in known if part and part in each.lower())
    within.sort(key=lambda each: not each.lower().startswith(part))
    return list(dict.fromkeys([*within, *difflib.get_close_matches(name, known, n=3)]))[:3]


def settings_of(cls: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a scheduler's constructor by name: what its configuration may contain."""
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {each.name: each for each in parameters if each.kind not in variadic}


@functools.cache
def _classes() -> dict[str, Any]:
    """All schedulers of diffusers, and its stand-ins for those that cannot be imported."""
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a scheduler requires diffusers: pip install 'fixedpoint-solvers[diffusion]' ({error})"
        ) from None
    named = [name for name in dir(diffusers) if name.endswith("Scheduler")]
    return {name: getattr(diffusers, name) for name in named if not name.startswith("Flax")}


def _check_settings(cls: Any, given: Mapping[str, Any]) -> None:
    known = settings_of(cls)
    for key, value in given.items():
        if key not in known:
            raise SchedulerError(f"is no setting of {cls.__name__}; {nearest(key, known)}", (key,))
        wanted = _plain_types(cls).get(key)
        if wanted is None or value == known[key].default:
            continue
        if not any(_is_of(value, each) for each in wanted):
            said = " or ".join(_said(each) for each in wanted)
            raise SchedulerError(f"must be {said}, got {value!r}", (key,))


@functools.cache
def _plain_types(cls: Any) -> dict[str, tuple[Any, ...]]:
    """The types of those settings whose annotations name plain ones only."""
    try:
        hints = typing.get_type_hints(cls.__init__)
    except Exception:  # an annotation that cannot be evaluated
        return {}
    found = {}
    for key, hint in hints.items():
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        members = typing.get_args(hint) if union else (hint,)
        if all(member in _PLAIN or typing.get_origin(member) is Literal for member in members):
            found[key] = tuple(members)
    return found


def _is_of(value: Any, expected: Any) -> bool:
    if typing.get_origin(expected) is Literal:
        return value in typing.get_args(expected)
    if expected in (int, float):
        return isinstance(value, (int, expected)) and not isinstance(value, bool)
    return isinstance(value, expected)


def _said(expected: Any) -> str:
    if typing.get_origin(expected) is Literal:
        return f"one of {', '.join(repr(each) for each in typing.get_args(expected))}"
    return _PLAIN[expected]


def _built(cls: Any, base: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    try:
        return cls.from_config(dict(base), **settings)
    except Exception as error:  # diffusers raises errors of any type for settings that make no scheduler
        said = " ".join(str(error).split())
        raise SchedulerError(f"cannot be built: {type(error).__name__}: {said}") from error
