"""Warnings that point at the line of the user which caused them."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

__all__ = ["warn_caller"]

# Frames in these folders are passed over: the library's own, and torch's between a layer or backward() and its caller.
_PASSED_OVER = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))


def warn_caller(warning: Warning) -> None:
    """Issue a warning at the innermost frame that belongs neither to this package nor to torch."""
    frame, level = sys._getframe(1), 2  # level 2 is the caller of this function
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PASSED_OVER):
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)
