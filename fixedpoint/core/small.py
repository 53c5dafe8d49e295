"""Arithmetic on the few numbers of a round: plain floats for one row, arrays for several, in one text.

An operation on an array of one entry takes some ten times as long as one on a float, and a round has about a hundred of
them. The functions here take either, and so do Python's operators. Both do the same arithmetic in float64, so that a
row gets the same bits alone and among others. Not ``~`` but ``^ True`` negates: of a Python bool, ``~`` is an integer.

They take tensors as well: while autograd records, the numbers from which a step is computed have derivatives, and on a
device whose numbers are not read they stay there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Number",
    "Truth",
    "any_row",
    "every",
    "exp2",
    "isfinite",
    "log2",
    "some",
    "sqrt",
    "summed",
    "taken",
    "where",
]

Number = Any
"""A number of one row, or of every row: a float, an array or a tensor."""
Truth = Any
"""Whether something holds of one row, or of every row: a bool, an array or a tensor."""


def where(condition: Any, one: Any, other: Any) -> Any:
    """Return ``one`` where the condition holds, else ``other``."""
    if condition.__class__ is bool:
        return one if condition else other
    if isinstance(condition, Tensor):
        return torch.where(condition, one, other)
    return np.where(condition, one, other)


def isfinite(number: Any) -> Any:
    """Whether numbers are finite."""
    if isinstance(number, Tensor):
        return number.isfinite()
    return math.isfinite(number) if number.__class__ is float else np.isfinite(number)


def some(truth: Truth) -> bool:
    """Whether something holds anywhere."""
    return bool(truth) if truth.__class__ is bool else bool(np.any(truth))


def any_row(truth: Truth) -> Truth:
    """Whether something holds in any block of a row; ``truth`` has shape ``(B, blocks)``, or is that of one block."""
    return truth if truth.__class__ is bool else _reduced(np.logical_or, truth)


def every(truth: Truth) -> Truth:
    """Whether something holds in every block of a row; ``truth`` has shape ``(B, blocks)``, or is that of one block."""
    return truth if truth.__class__ is bool else _reduced(np.logical_and, truth)


def _reduced(how: np.ufunc, truth: Any) -> Truth:
    """Reduce over the blocks of each row; one block is taken as it is."""
    found: NDArray[np.bool_] = truth[:, 0] if truth.shape[1] == 1 else how.reduce(truth, axis=1)
    return found


def taken(numbers: Any, rows: NDArray[np.int64]) -> Any:
    """Return the numbers of some of several rows; as a float, if that is a single one."""
    part = numbers[rows]
    return part.item() if part.size == 1 else part


def log2(number: Number) -> Any:
    """Return the binary logarithm, of floats and arrays by the same routine."""
    return float(np.log2(number)) if number.__class__ is float else np.log2(number)


def exp2(number: Number) -> Any:
    """Return the power of two, of floats and arrays by the same routine."""
    return float(np.exp2(number)) if number.__class__ is float else np.exp2(number)


def sqrt(number: Any) -> Any:
    """Return square roots."""
    if isinstance(number, Tensor):
        return number.sqrt()
    return math.sqrt(number) if number.__class__ is float else np.sqrt(number)


def summed(numbers: Any) -> Any:
    """Return the sum over the first dimension, one term after another: so its bits are the same in any batch."""
    if isinstance(numbers, Tensor):
        return numbers.cumsum(0)[-1]
    return np.add.accumulate(numbers, axis=0)[-1]
