"""Plain values as JSON that every reader can read, and their digests."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["digest", "json_text"]


def json_text(data: Any, canonical: bool = True) -> str:
    """JSON; NaN and infinities, which JSON lacks, become ``"nan"``, ``"inf"`` and ``"-inf"``.

    Parameters
    ----------
    canonical
        One line with sorted keys, to be hashed; else for people, in the order given.
    """
    indent = None if canonical else 2
    return json.dumps(_finite(data), sort_keys=canonical, indent=indent, ensure_ascii=False, allow_nan=False)


def digest(content: bytes) -> str:
    """sha256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _finite(data: Any) -> Any:
    if isinstance(data, float) and not math.isfinite(data):
        return str(data)
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return data
