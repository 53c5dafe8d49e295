"""Plain values as strict JSON, and digests of bytes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["digest", "json_text"]


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
