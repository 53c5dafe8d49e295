"""Exceptions that say that a function is not defined at a point, where array arithmetic would return NaN."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["leaves_domain"]

_RAISED = (ArithmeticError, np.linalg.LinAlgError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
# The sentences of the math module: up to Python 3.13, and from 3.14 on ("expected a positive input, got -1.0").
_MATH = ("math domain error", "math range error", "expected a ")


def leaves_domain(error: Exception) -> bool:
    """Whether an exception says that a function has no value at a point.

    So it is with a division by zero, an overflow, a floating-point error and a singular matrix, and with a
    ``ValueError`` of Python's ``math`` module. NumPy and torch return NaN or Inf from most of these.
    """
    return isinstance(error, _RAISED) or (isinstance(error, ValueError) and str(error).startswith(_MATH))
