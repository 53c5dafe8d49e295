r"""Linear parts of a chain: matrices that give the change of all later states implied by the defect of a step.

With slopes ``A_i`` the defects ``r_i`` of all steps are swept along the chain by

    delta_{i+1} = r_i + A_i delta_i,    delta_0 = 0

that is ``delta = M r`` with ``M[i, k] = A_i A_{i-1} ... A_{k+1}`` for ``k <= i`` (row ``i`` is state ``i + 1``). In a
band of width ``k`` the sweep is ``delta_{i+1} = r_i + ... + r_{i-k+1}``, whose ``M`` is zero below the band.

With one known number per step, ``M`` is a running product, and ``M r`` is a running sum between two scalings: ``N d``
operations instead of ``N^2 d``. Where division by these products is not possible (a slope is zero or negative, or the
products leave the range of the dtype), the sweep is a parallel scan. Derivatives at the states of a round are also
swept by a scan: ``N d`` operations for diagonals, ``N d^3`` operations and ``N d^2`` numbers for Jacobians. A band is a
sum of blocks of 1, 2, 4, ... defects, in ``log k`` passes; the difference of two running sums would suffer from
cancellation.

All sweeps except the scan of matrices are elementwise over rows: a row has the same bits whatever its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.scan import linear_recurrence

__all__ = ["Band", "Derivatives", "LinearPart"]


@dataclass(frozen=True, eq=False)
class LinearPart:
    """The linear part made of one slope per step.

    Attributes
    ----------
    slopes
        ``A_0 .. A_{N-1}``, shape ``(N,)``, float64. ``A_0`` is never used, since ``x_0`` is given. The others are
        finite and may be zero or negative.
    """

    slopes: Float[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.slopes)

    @cached_property
    def numbers(self) -> list[float]:
        """The slopes as floats on the host."""
        found: list[float] = self.slopes.tolist()
        return found

    @cached_property
    def matrix(self) -> Float[Tensor, "N N"]:
        """The lower-triangular matrix ``M``, float64."""
        matrix = torch.eye(len(self), dtype=torch.float64, device=self.slopes.device)
        for i in range(1, len(self)):
            matrix[i, :i] = self.slopes[i] * matrix[i - 1, :i]
        return matrix

    @cached_property
    def scales(self) -> Float[Tensor, "N 1"]:
        """Running products ``A_1 .. A_i``: ``M[i, k] = scales[i] / scales[k]``."""
        later = torch.cat([torch.ones_like(self.slopes[:1]), self.slopes[1:]])
        return later.cumprod(0).unsqueeze(1)

    def sweep(self, defects: Float[Tensor, "B p d"], first: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B p d"]:
        """Return ``M r``, the change of every state that the defects of a window of the chain imply.

        Parameters
        ----------
        defects
            Shape ``(B, p, d)``: the defects of steps ``first[b] .. first[b] + p - 1``. All other defects count as zero,
            and entries beyond the end of the chain must be zero.
        first
            Shape ``(B,)``, int64: the first step of each row's window; default: 0.

        Returns
        -------
        Float[Tensor, "B p d"]
            The changes of the states after these steps, equal to those of a sweep of the whole chain.
        """
        if self._kinds <= {0.0}:
            return defects
        if self.is_identity:
            return defects.cumsum(dim=1)
        steps = self._steps(defects.shape[1], first)
        if self._divides(defects.dtype):
            scales = self.scales.to(defects.dtype)[steps]
            return (defects / scales).cumsum(dim=1) * scales
        slopes = self.slopes.to(defects.dtype)[steps].view(-1, defects.shape[1], 1)
        return _sound(linear_recurrence(slopes, defects), defects)

    @property
    def is_identity(self) -> bool:
        """Whether all slopes are 1, so that every defect is carried on unchanged."""
        return self._kinds == {1.0}

    @cached_property
    def _kinds(self) -> set[float]:
        return set(self.numbers[1:])

    def _steps(self, count: int, first: Int[Tensor, " B"] | None) -> Int[Tensor, "*B p"]:
        """Return the number of each step of a window, clamped to the last step of the chain."""
        steps = torch.arange(count, device=self.slopes.device)
        return (steps if first is None else first.unsqueeze(1) + steps).clamp(max=len(self) - 1)

    @cached_property
    def _extremes(self) -> tuple[float, float]:
        """The smallest and the largest running product. The smallest is positive if all slopes are."""
        return float(self.scales.min()), float(self.scales.max())

    def _divides(self, dtype: torch.dtype) -> bool:
        # The square roots leave room for the defects that the products divide and multiply.
        least, most = self._extremes
        range_ = torch.finfo(dtype)
        return bool(range_.tiny**0.5 <= least and most <= range_.max**0.5)


@dataclass(frozen=True, eq=False)
class Band:
    """The linear part in which every state changes by the sum of the defects of the last ``order`` steps.

    Attributes
    ----------
    order
        Number of steps that a defect is carried, its own included; at least 1.
    length
        ``N``, the number of steps.
    """

    order: int
    length: int

    def __len__(self) -> int:
        return self.length

    @cached_property
    def matrix(self) -> Float[Tensor, "N N"]:
        """The lower-triangular band ``M``, float64."""
        ones = torch.ones(self.length, self.length, dtype=torch.float64)
        return ones.tril() - ones.tril(-self.order)

    def sweep(self, defects: Float[Tensor, "B p d"], first: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B p d"]:
        """Return ``M r``, as :meth:`LinearPart.sweep`; ``first`` is ignored, a band is the same in every window."""
        changes, taken = torch.zeros_like(defects), 0
        block, width = defects, 1  # the sum of the last ``width`` defects
        while True:
            if self.order & width:
                changes, taken = _plus_later(changes, block, taken), taken + width
            if 2 * width > self.order:
                return changes
            block, width = _plus_later(block, block, width), 2 * width


@dataclass(frozen=True, eq=False)
class Derivatives:
    """The linear part made of the derivatives of the last ``n`` steps, taken at the states of a round.

    Earlier steps are solved and pass no change on. A step whose derivative is not finite carries no defect on. A state
    at which the sweep is not finite changes by the defect of its own step alone.

    Attributes
    ----------
    steps
        Diagonals, shape ``(B, n, d)``, or Jacobians, shape ``(B, n, d, d)``.
    """

    steps: Float[Tensor, "B n d"] | Float[Tensor, "B n d d"]

    def sweep(self, defects: Float[Tensor, "B N d"]) -> Float[Tensor, "B N d"]:
        """Return ``M r``, the change of every state that the defects imply."""
        solved, own = defects.tensor_split([defects.shape[1] - self.steps.shape[1]], dim=1)
        swept = linear_recurrence(torch.where(self.steps.isfinite(), self.steps, 0.0), own)
        return torch.cat([solved, _sound(swept, own)], dim=1)


def _sound(swept: Float[Tensor, "B n d"], defects: Float[Tensor, "B n d"]) -> Float[Tensor, "B n d"]:
    """Replace the sweep by the defect of the state's own step where the sweep is not finite."""
    return torch.where(swept.isfinite().all(dim=2, keepdim=True), swept, defects)


def _plus_later(sums: Float[Tensor, "B p d"], more: Float[Tensor, "B p d"], by: int) -> Float[Tensor, "B p d"]:
    """Return ``sums`` plus ``more`` of ``by`` steps earlier."""
    if by == 0:
        return sums + more
    return torch.cat([sums[:, :by], sums[:, by:] + more[:, :-by]], dim=1)
