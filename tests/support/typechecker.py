"""Checks annotations during tests with beartype: only shapes and dtypes of tensors, once for each kind of call.

Options and values from users are checked by the library itself, with messages that the tests compare. A type checker
that rejected them first would hide these messages. A call with the same shapes and dtypes as one that passed is not
checked again: an iteration makes thousands of such calls, and checking each took most of the time of the tests.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Hashable
from typing import Any

import jaxtyping
import torch
from beartype import beartype
from jaxtyping import AbstractArray

__all__ = ["checked", "once_for_each_kind"]

_JAXTYPED = jaxtyping.jaxtyped
_TOLD, _NESTED = {bool, int, str}, {tuple, list}
_SHAPED = re.compile(r"\b(Float|Int|Int8|Bool|Shaped)\[")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` with the annotations of its tensors checked at every call."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint if _is_shaped(hint) else Any for name, hint in hints.items()}
    return beartype(function)


def once_for_each_kind(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``jaxtyping.jaxtyped`` as the import hook applies it, except that each kind of call is checked once."""
    return functools.partial(_decorated, typechecker=typechecker)


def _decorated(what: Any, *, typechecker: Callable[..., Any]) -> Any:
    if isinstance(what, type):
        if dataclasses.is_dataclass(what) and "__init__" in vars(what):
            what.__init__ = _decorated(what.__init__, typechecker=typechecker)  # type: ignore[misc]
        return what
    if not any(map(_is_shaped, what.__annotations__.values())):
        return what
    careful = _JAXTYPED(what, typechecker=typechecker)
    passed: set[Hashable] = set()

    @functools.wraps(what)
    def function(*arguments: Any, **named: Any) -> Any:
        kind: Hashable = tuple([_kind(value) for value in arguments])
        if named:
            kind = kind, tuple([(name, _kind(value)) for name, value in named.items()])
        if kind in passed:
            return what(*arguments, **named)
        result = careful(*arguments, **named)
        passed.add(kind)
        return result

    return function


def _kind(value: Any) -> Hashable:
    what = type(value)
    if what in _TOLD:
        return what, value
    if what in _NESTED:
        return what, *map(_kind, value)
    return (value.shape, value.dtype) if issubclass(what, torch.Tensor) else what


def _is_shaped(hint: Any) -> bool:
    if isinstance(hint, str):
        return _SHAPED.search(hint) is not None
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_is_shaped(part) for part in typing.get_args(hint))
