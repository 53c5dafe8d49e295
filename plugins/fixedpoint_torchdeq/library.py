"""Imports torchdeq on first use."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

__all__ = ["torchdeq"]


def torchdeq(module: str = "") -> Any:
    r"""The package torchdeq, or one of its modules, e.g. ``torchdeq("solver.stat")``.

    Its docstrings contain escapes such as ``\|``, about which Python warns when it first compiles them. These warnings
    are suppressed, so that programs that turn warnings into errors can import it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", SyntaxWarning)
        return importlib.import_module(f"torchdeq.{module}" if module else "torchdeq")
