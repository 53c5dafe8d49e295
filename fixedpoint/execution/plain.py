"""Plain values as strict JSON, texts that can be shown anywhere, and digests of bytes."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

__all__ = ["cut", "digest", "is_printable", "json_text", "one_line", "printable", "said"]

# Characters of a message that are kept.
_LONGEST = 20_000


def json_text(data: Any, canonical: bool = True) -> str:
    """Return JSON. NaN and infinities, which JSON lacks, become ``"nan"``, ``"inf"`` and ``"-inf"``.

    Parameters
    ----------
    data
        Numbers, strings, booleans, None, and mappings, lists and tuples of them.
    canonical
        Whether to write one line with sorted keys, for hashing; otherwise indented, in the order given.
    """
    indent = None if canonical else 2
    return json.dumps(_finite(data), sort_keys=canonical, indent=indent, ensure_ascii=False, allow_nan=False)


def is_printable(text: str) -> bool:
    """Return whether a text is one line of characters that any terminal, file and parser takes as text."""
    return text.isprintable() or all(map(_is_shown, text))


def printable(text: str) -> str:
    r"""Return a text with everything but line feeds, tabs and printable characters as escapes such as ``\x1b``.

    These are control characters, marks that reorder a line, and halves of surrogate pairs, which the names of files
    that are not UTF-8 contain.
    """
    return text if text.isprintable() else "".join(c if c in "\n\t" or _is_shown(c) else ascii(c)[1:-1] for c in text)


def one_line(text: str, longest: int | None = None) -> str:
    """Return a text in one line, printable, and cut off after ``longest`` characters if that is given."""
    line = printable(text if text.isprintable() else text.replace("\n", "\\n").replace("\t", "\\t"))
    return line if longest is None or len(line) <= longest else f"{line[: longest - 1]}…"


def _is_shown(character: str) -> bool:
    # Python counts spaces other than its own, and the joiners that scripts and emoji need, as not printable.
    return character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) == "Zs"


def said(error: BaseException) -> str:
    """Return the message of an exception with its notes, whatever its class does when it is asked for a text."""
    try:
        notes = getattr(error, "__notes__", None) or []
        message = "; ".join([str(error), *map(str, notes)])
    except Exception as inner:  # third-party code may raise anything
        message = f"no message, for asking for it raised {type(inner).__name__}"
    return cut(printable(message)) or "no message"


def cut(text: str) -> str:
    """Return a text without its middle if it has more characters than a record keeps."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}\n[...]\n{text[-half:]}"


def digest(content: bytes) -> str:
    """Return the sha256 of ``content`` in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _finite(data: Any) -> Any:
    """Replace floats that are not finite by strings."""
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return data
