"""The checker of annotations used in the test run: beartype, on shapes and dtypes of tensors alone.

Options and values from users are checked by the library itself, with sentences the tests read; a checker that
refused them first would hide those.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray

__all__ = ["checked"]

_SHAPED = re.compile(r"\b(Float|Int|Int8|Bool|Shaped)\[")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with the annotations of its tensors checked at every call."""
    hints = function.__annotations__
    function.__annotations__ = {name: hint if _is_shaped(hint) else Any for name, hint in hints.items()}
    return beartype(function)


def _is_shaped(hint: Any) -> bool:
    if isinstance(hint, str):
        return _SHAPED.search(hint) is not None
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_is_shaped(part) for part in typing.get_args(hint))
