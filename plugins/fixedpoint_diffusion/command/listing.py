"""Writes JSON with long lists, one item at a time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fixedpoint.execution.plain import json_text

__all__ = ["listed"]


def listed(told: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]) -> Iterator[bytes]:
    """The text of a JSON object, indented, in pieces: the values of ``told``, then the lists, which are never held.

    Parameters
    ----------
    told
        Keys and plain values, at least one.
    lists
        Keys and the items of each list.
    """
    yield json_text(told, canonical=False).removesuffix("\n}").encode()
    for key, items in lists.items():
        yield f",\n  {json_text(key)}: [".encode()
        sign = ""
        for item in items:
            yield f"{sign}\n{textwrap.indent(json_text(item, canonical=False), '    ')}".encode()
            sign = ","
        yield b"\n  ]" if sign else b"]"
    yield b"\n}\n"
