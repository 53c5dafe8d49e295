"""torchdeq itself, imported when it is first wanted."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

__all__ = ["torchdeq"]


def torchdeq(module: str = "") -> Any:
    r"""The package, or one of its modules, e.g. ``torchdeq("solver.stat")``.

    Its docstrings hold escapes such as ``\|``, about which Python warns when it compiles them for the first time; that
    is no business of whoever runs with warnings as errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", SyntaxWarning)
        return importlib.import_module(f"torchdeq.{module}" if module else "torchdeq")
