r"""Linear recurrences by a parallel scan.

    d_0 = r_0,    d_i = r_i + A_i d_{i-1},    i = 1 .. N-1

Two neighbouring steps are one step of the same kind, ``(A_1, r_1) after (A_0, r_0) = (A_1 A_0, r_1 + A_1 r_0)``. So
pairs are merged, the recurrence of half the length is solved for every second state, and the states in between follow:
``log2 N`` levels of batched products, in all no more than ``N`` products of slopes and ``2 N`` of slopes with states.
(Blelloch 1990, "Prefix sums and their applications", section 1.4.1, first-order recurrences.)

Nothing is divided, so slopes may be zero and their products along the chain may underflow; running products with a
division, as for known positive coefficients, lose everything there.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["linear_recurrence", "running_sums"]

# States from this size on are added up one after the other on a CPU: a sum along the chain strides over memory.
_LARGE = 1024


def linear_recurrence(
    slopes: Float[Tensor, "#B N #d"] | Float[Tensor, "B N d d"], inputs: Float[Tensor, "B N d"]
) -> Float[Tensor, "B N d"]:
    """``d_i = r_i + A_i d_{i-1}`` for all ``i`` at once, from ``d_{-1} = 0``.

    With diagonals or numbers a row has the same bits whatever its batch; with matrices that is up to the matrix
    product. A product of slopes over a stretch of the chain that leaves the range of the dtype makes what follows Inf
    or NaN.

    Parameters
    ----------
    slopes
        ``A``: diagonals, shape ``(B, N, d)``, or matrices, shape ``(B, N, d, d)``, or one number a step, shape
        ``(B, N, 1)`` or ``(1, N, 1)``. ``A_0`` is never used and may be NaN or Inf.
    inputs
        ``r``, shape ``(B, N, d)``, of the same dtype.

    Raises
    ------
    ValueError
        When the shapes do not go together.
    """
    rows, length, size = inputs.shape
    if slopes.shape not in ((rows, length, size), (rows, length, size, size), (rows, length, 1), (1, length, 1)):
        raise ValueError(
            f"slopes must have shape {(rows, length, size)}, {(rows, length, size, size)} or {(rows, length, 1)} to go "
            f"with the inputs, got {tuple(slopes.shape)}"
        )
    return _scanned(slopes, inputs)


def running_sums(inputs: Float[Tensor, "B N d"]) -> Float[Tensor, "B N d"]:
    """``d_i = r_i + d_{i-1}``, in single precision at least; in the memory of the inputs unless gradients flow."""
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    if torch.is_grad_enabled():
        return wide.cumsum(dim=1)
    if inputs.device.type != "cpu" or inputs.shape[2] < _LARGE:
        return torch.cumsum(wide, dim=1, out=wide)
    for i in range(1, inputs.shape[1]):
        wide[:, i] += wide[:, i - 1]
    return wide


def _scanned(slopes: Tensor, inputs: Tensor) -> Tensor:
    length = inputs.shape[1]
    if length < 2:
        return inputs
    first, second = inputs[:, 0 : length - 1 : 2], inputs[:, 1::2]
    steps = slopes[:, 1::2]
    odd = _scanned(_product(steps, slopes[:, 0 : length - 1 : 2]), second + _applied(steps, first))
    states = torch.empty_like(inputs)
    states[:, 0] = inputs[:, 0]
    states[:, 1::2] = odd
    states[:, 2::2] = inputs[:, 2::2] + _applied(slopes[:, 2::2], odd[:, : (length - 1) // 2])
    return states


def _product(left: Tensor, right: Tensor) -> Tensor:
    return left * right if left.ndim == 3 else left @ right


def _applied(slopes: Tensor, states: Tensor) -> Tensor:
    return slopes * states if slopes.ndim == 3 else (slopes @ states.unsqueeze(-1)).squeeze(-1)
