"""Solves within ``torch.inference_mode``: they leave it, and copy the tensors that were made in it.

Tensors that are made in this mode count no writes, cannot be written into outside of it, and cannot be saved for
derivatives, which solvers require of the states. A solve therefore runs outside of the mode, recording nothing. Its
solution is an ordinary tensor, which can be used in either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["ordinary", "outside_of_inference_mode", "writes"]

P = ParamSpec("P")
R = TypeVar("R")


def outside_of_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that runs with ``torch.no_grad`` where it is called with ``torch.inference_mode``."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return call


def ordinary(tensor: Tensor) -> Tensor:
    """Return a tensor that can be written into: the same, or a copy of one that was made in ``torch.inference_mode``.

    Outside of this mode only.
    """
    return tensor.clone() if tensor.is_inference() else tensor


def writes(tensor: Tensor) -> int:
    """Return how often a tensor was written into as far as torch counts it; always 0 for one of inference mode."""
    return 0 if tensor.is_inference() else tensor._version
