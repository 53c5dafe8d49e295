"""Options of components: fields of frozen dataclasses, declared once with default, range and help.

A component (solver, termination, task ...) declares each option with :func:`option`. The field name is also the YAML
key; the help also appears on the command line and in the docs. Constructing the component checks every value, so that a
bad one raises :class:`OptionError` before any work is done, whether it came from Python or from a file.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

__all__ = ["OptionError", "Options", "by_options", "nearest", "option", "option_types", "undecorated"]


class OptionError(ValueError, TypeError):
    """An option is unknown, or has a value of the wrong type or out of range.

    Attributes
    ----------
    option
        Name of the option.
    reason
        The message without the names of component and option, for callers that report a position of their own (a line
        of a YAML file).
    within
        For an option that is a mapping: the key that the message is about, or several for mappings within; empty for
        the whole option.
    """

    def __init__(self, component: str, option: str, reason: str, within: tuple[str, ...] = ()) -> None:
        super().__init__(f"{component}: {'.'.join((option, *within))} {reason}")
        self.option = option
        self.reason = reason
        self.within = within


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    factory: Callable[[], Any] | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    added: bool = False,
    path: bool = False,
) -> Any:
    """Declare one option of a component.

    Parameters
    ----------
    default, factory
        The default value, or a function that returns it. With neither, the option is required.
    help
        What the option does, in one sentence; shown by ``fixedpoint show`` and in the docs.
    ge, gt, le, lt
        Bounds of a number: at least, greater than, at most, less than.
    added
        Whether the option joined a component that run files used before. Where it has its default, the configuration
        of a cell leaves it out, so that cells keep their hashes.
    path
        Whether a string names a file or folder. In a run file it may be relative to the file: where there is such a
        file or folder, the option gets its path from the working directory.

    Returns
    -------
    Any
        A dataclass field, which carries help and bounds as metadata.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata: dict[str, Any] = {"help": help, **{key: value for key, value in bounds.items() if value is not None}}
    if added:
        metadata["added"] = True
    if path:
        metadata["path"] = True
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class _ByOptions:
    """A set of names: on an instance, the set that its options imply; on the class, the set of the default options."""

    def __init__(self, default: frozenset[str], of: Callable[[Any], frozenset[str]]) -> None:
        self.default, self.of = default, of
        self.__doc__ = of.__doc__

    def __get__(self, instance: object, owner: type) -> frozenset[str]:
        return self.default if instance is None else self.of(instance)


def by_options(*default: str) -> Callable[[Callable[[Any], frozenset[str]]], Any]:
    """Decorate ``needs`` or ``provides`` where they depend on options: ``@by_options() def needs(self): ...``.

    Parameters
    ----------
    default
        The names that hold with the default options, which the class attribute returns.
    """
    return lambda of: _ByOptions(frozenset(default), of)


def option_types(cls: type) -> Mapping[str, Any]:
    """Return the type of every option of ``cls`` by name, with annotations resolved."""
    types_of: Mapping[str, Any] = _option_types(cls)
    return types_of


@functools.cache
def _option_types(cls: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def undecorated(cls: type) -> str:
    """Return what is wrong with a class that declares options and is not decorated as a dataclass; else ``""``."""
    fault: str = _undecorated(cls)
    return fault


@functools.cache
def _undecorated(cls: Any) -> str:
    for base in cls.__mro__:
        # The decorator replaces the fields of a class by their defaults.
        left = [name for name, value in vars(base).items() if isinstance(value, dataclasses.Field)]
        if left:
            whose = "it" if base is cls else f"its base class {base.__name__}"
            return f"has options that are never set ({', '.join(left)}); write @dataclass(frozen=True) above {whose}"
    return ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest known name, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f'did you mean "{near[0]}"?' if near else f"known: {', '.join(known) or 'none'}"


_LIMITS: tuple[tuple[str, str, Callable[[Any, Any], bool]], ...] = (
    ("ge", "at least", lambda value, bound: value >= bound),
    ("gt", "greater than", lambda value, bound: value > bound),
    ("le", "at most", lambda value, bound: value <= bound),
    ("lt", "less than", lambda value, bound: value < bound),
)


class Options:
    """Base class of frozen dataclasses whose fields are options. It checks them on construction.

    Attributes
    ----------
    variant
        The ``name`` by which a run file selects this class where an option admits several classes.
    uses
        Distributions that the component computes with, e.g. ``("diffusers",)``. The records of a run store their
        versions.

    Raises
    ------
    OptionError
        If an option is unknown, of the wrong type or out of range. The message names the component, the option, the
        value and what was expected.
    """

    variant: ClassVar[str] = ""
    uses: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *args: Any, **options: Any) -> Self:
        if fault := undecorated(cls):
            raise TypeError(f"{cls.__name__} {fault}")
        # Checked before __init__, whose own TypeError would not suggest the nearest name.
        for given in options:
            if given not in option_types(cls):
                raise OptionError(cls.__name__, given, f"is no option; {nearest(given, option_types(cls))}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        cls: Any = type(self)
        name = cls.__name__
        for key, expected, limits in _checks(cls):
            value = getattr(self, key)
            checked = value if type(value) is expected else _convert(value, expected)
            if checked is _REFUSED:
                raise OptionError(name, key, f"must be {_describe(expected)}, got {value!r}")
            if checked is not value:
                object.__setattr__(self, key, checked)  # the dataclass is frozen
            for words, bound, holds in limits:
                if checked is not None and not holds(checked, bound):
                    raise OptionError(name, key, f"must be {words} {bound}, got {value!r}")
        self.check()

    def check(self) -> None:
        """Check conditions on several options at once; raise :class:`OptionError` where one fails."""


@functools.cache
def _checks(cls: Any) -> list[tuple[str, Any, list[tuple[str, Any, Callable[[Any, Any], bool]]]]]:
    """Return the options of a class by name, each with its type and its limits."""
    expected, fields = option_types(cls), dataclasses.fields(cls)
    limits = {
        field.name: [(words, field.metadata[key], holds) for key, words, holds in _LIMITS if key in field.metadata]
        for field in fields
        if field.init
    }
    return [(name, expected[name], [limit for limit in each if limit[1] is not None]) for name, each in limits.items()]


_REFUSED = object()  # a sentinel: every other object, None included, may be the value of an option


def _convert(value: Any, expected: Any) -> Any:
    """Return ``value`` if it has the ``expected`` type, else ``_REFUSED``.

    An int is converted to a float and a list to a tuple, where that is expected. The ``variant`` name of an options
    class is converted to an instance with its defaults.
    """
    origin = typing.get_origin(expected)
    if expected is Any:
        return value
    if origin is Literal:
        return value if value in typing.get_args(expected) else _REFUSED
    if origin in (typing.Union, types.UnionType):
        results = [_convert(value, member) for member in typing.get_args(expected)]
        # A member that takes the value as it is comes before one that converts it: 3 stays an int in `float | int`.
        exact = [result for result in results if result is value]
        accepted = exact or [result for result in results if result is not _REFUSED]
        return accepted[0] if accepted else _REFUSED
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return _REFUSED
        (member,) = set(typing.get_args(expected)) - {Ellipsis}
        items = tuple(_convert(item, member) for item in value)
        return _REFUSED if _REFUSED in items else (value if items == value else items)
    if expected is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):  # a bool is an int in Python
            return _REFUSED
        return value if isinstance(value, float) else float(value)
    if expected is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else _REFUSED
    if isinstance(value, str) and _by_name(expected) == value:
        return expected()
    if isinstance(origin or expected, type):
        return value if isinstance(value, origin or expected) else _REFUSED
    return value


def _by_name(expected: Any) -> str | None:
    """Return the name that stands for an options class with its defaults; None if it has none or requires options."""
    if not (isinstance(expected, type) and issubclass(expected, Options) and expected.variant):
        return None
    fields = [field for field in dataclasses.fields(expected) if field.init]  # type: ignore[arg-type]
    unset = dataclasses.MISSING
    return expected.variant if all((f.default, f.default_factory) != (unset, unset) for f in fields) else None


def _describe(expected: Any) -> str:
    """Return an option's type in words, for error messages."""
    origin = typing.get_origin(expected)
    if expected is type(None):
        return "nothing"
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(expected))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(member) for member in typing.get_args(expected))
    if origin is tuple:
        (member,) = set(typing.get_args(expected)) - {Ellipsis}
        return f"a list of {_describe(member)}"
    if _by_name(expected):
        return repr(_by_name(expected))
    plain = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return plain.get(expected, getattr(expected, "__name__", str(expected)))
