r"""Linear recurrences by a parallel scan.

    d_0 = r_0,    d_i = r_i + A_i d_{i-1},    i = 1 .. N-1

Two neighbouring steps combine to one step of the same form: ``(A_1, r_1) after (A_0, r_0) = (A_1 A_0, r_1 + A_1 r_0)``.
So pairs are merged, the recurrence of half the length is solved for every second state, and the states in between
follow from it. This takes ``log2 N`` levels of batched products: in all at most ``N`` products of slopes and ``2 N``
products of slopes with states. (Blelloch 1990, "Prefix sums and their applications", section 1.4.1, first-order
recurrences.)

Nothing is divided, so slopes may be zero, and their products along the chain may underflow. Running products with a
division, as used for known positive coefficients, lose all accuracy in these cases.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["linear_recurrence", "running_sums"]

# On a CPU, states of at least this size are added in a loop over steps: cumsum along the chain strides over memory.
_LARGE = 1024


def linear_recurrence(
    slopes: Float[Tensor, "#B N #d"] | Float[Tensor, "B N d d"], inputs: Float[Tensor, "B N d"]
) -> Float[Tensor, "B N d"]:
    """Solve ``d_i = r_i + A_i d_{i-1}``, ``d_{-1} = 0``, for all ``i`` by a parallel scan.

    With diagonals or numbers a row has the same bits whatever its batch. With matrices this depends on the matrix
    product. If a product of slopes over some part of the chain leaves the range of the dtype, later results are Inf or
    NaN.

    Parameters
    ----------
    slopes
        ``A``: diagonals, shape ``(B, N, d)``; matrices, shape ``(B, N, d, d)``; or one number per step, shape
        ``(B, N, 1)`` or ``(1, N, 1)``. ``A_0`` is never used and may be NaN or Inf.
    inputs
        ``r``, shape ``(B, N, d)``, with the dtype of ``slopes``.

    Returns
    -------
    Float[Tensor, "B N d"]
        ``d_0 .. d_{N-1}``.

    Raises
    ------
    ValueError
        When the shape of ``slopes`` does not fit that of ``inputs``.
    """
    rows, length, size = inputs.shape
    if slopes.shape not in ((rows, length, size), (rows, length, size, size), (rows, length, 1), (1, length, 1)):
        raise ValueError(
            f"slopes must have shape {(rows, length, size)}, {(rows, length, size, size)} or {(rows, length, 1)} to go "
            f"with the inputs, got {tuple(slopes.shape)}"
        )
    return _scanned(slopes, inputs)


def running_sums(inputs: Float[Tensor, "B N d"]) -> Float[Tensor, "B N d"]:
    """Return ``d_i = r_i + d_{i-1}``, in float32 or wider; this may overwrite ``inputs`` unless autograd records."""
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
