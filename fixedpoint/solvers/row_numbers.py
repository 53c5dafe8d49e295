"""The numbers of rows from which a step is computed: arrays on the host, or tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated
from fixedpoint.core.transfer import to_device, to_host

__all__ = ["as_tensor", "constant", "everywhere", "norm_of", "rows_first", "rows_last", "squares_known"]


def everywhere(like: Any, truth: bool) -> Any:
    """Return the same truth value for every row, as an array or a tensor."""
    return torch.full_like(like, truth, dtype=torch.bool) if isinstance(like, Tensor) else np.full(len(like), truth)


def rows_last(sums: Any, on_host: bool) -> Any:
    """Return sums ``(B, parts, k)`` with the dimensions in reverse order, as an array on the host or a tensor."""
    if isinstance(sums, Tensor) and on_host:
        (sums,) = to_host(sums)
    return sums.movedim((0, 1), (2, 1)) if isinstance(sums, Tensor) else sums.transpose(2, 1, 0)


def rows_first(weights: Any, like: Tensor) -> Float[Tensor, "B parts k"]:
    """Return weights ``(k, parts, B)`` with the dimensions in reverse order, as a tensor."""
    if isinstance(weights, Tensor):
        return weights.movedim((2, 1), (0, 1))
    return to_device(np.ascontiguousarray(weights.transpose(2, 1, 0)), like.device)


def as_tensor(numbers: Any, like: Tensor) -> Tensor:
    """Return numbers of rows as a tensor on a device."""
    return numbers if isinstance(numbers, Tensor) else to_device(numbers, like.device)


def constant(numbers: Any) -> Any:
    """Return numbers without their graph."""
    return numbers.detach() if isinstance(numbers, Tensor) else numbers


def norm_of(at: Evaluated, on_host: bool) -> Any:
    """Return the norm of the residual of every row: an array on the host, or a tensor."""
    if not on_host:
        return at.residual_norm
    return at.numbers.error[:, 0] if at.plain and at.numbers is not None else to_host(at.residual_norm)[0]


def squares_known(at: Evaluated, on_host: bool) -> tuple[Any, Any]:
    """Return the squared norms of residual and value, shape ``(1, B)``."""
    if on_host and at.numbers is not None:
        norms: list[Any] = [at.numbers.error[:, 0], at.numbers.scale[:, 0]]
    else:
        norms = [at.residual_norm, at.value_norm]
    return norms[0][None] * norms[0][None], norms[1][None] * norms[1][None]
