r"""Linear parts of a chain: how a defect in one step changes all later states.

With slopes ``A_i`` the defects ``r_i`` of all steps are swept along the chain by

    delta_{i+1} = r_i + A_i delta_i,    delta_0 = 0

that is ``delta = M r`` with ``M[i, k] = A_i A_{i-1} ... A_{k+1}`` for ``k <= i`` (row ``i`` is state ``i + 1``), or, in
a band of width ``k``, by ``delta_{i+1} = r_i + ... + r_{i-k+1}``, whose ``M`` is cut off below the band.

With one known number a step ``M`` is a running product, so ``M r`` is a running sum between two scalings: ``N d``
operations in place of ``N^2 d``. Where these products cannot be divided by (a slope is zero or negative, or the
products leave the range of the dtype) the sweep is a parallel scan, as it is for derivatives at the states of a round:
``N d`` operations for diagonals, ``N d^3`` and ``N d^2`` numbers for Jacobians. A band is a sum of blocks of 1, 2, 4,
... defects, ``log k`` passes; the difference of two running sums would cancel.

All but the scan of matrices are elementwise over rows: a row has the same bits whatever its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.slope.scan import linear_recurrence

__all__ = ["Band", "Derivatives", "LinearPart"]


@dataclass(frozen=True, eq=False)
class LinearPart:
    """Slopes ``A_0 .. A_{N-1}`` of a chain, float64; ``A_0`` is never used, since ``x_0`` is given.

    The others are finite; they may be zero or negative.
    """

    slopes: Float[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.slopes)

    @cached_property
    def numbers(self) -> list[float]:
        """The slopes, on the host."""
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
        """``M r``: the change of every state that the defects of a window of the chain imply.

        Parameters
        ----------
        defects
            Of the steps ``first[b] .. first[b] + p - 1``; all others are zero, and so must be those beyond the chain.
        first
            The first step of each row's window; default: 0.

        Returns
        -------
        Float[Tensor, "B p d"]
            The changes of the states that these steps lead to: those of a sweep of the whole chain.
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
        """Whether it hands every defect on unchanged: the identity's linear part."""
        return self._kinds == {1.0}

    @cached_property
    def _kinds(self) -> set[float]:
        return set(self.numbers[1:])

    def _steps(self, count: int, first: Int[Tensor, " B"] | None) -> Int[Tensor, "*B p"]:
        """The number of each step of a window, the last one of the chain for those beyond it."""
        steps = torch.arange(count, device=self.slopes.device)
        return (steps if first is None else first.unsqueeze(1) + steps).clamp(max=len(self) - 1)

    @cached_property
    def _extremes(self) -> tuple[float, float]:
        """The smallest and the largest running product; the smallest is positive where all slopes are."""
        return float(self.scales.min()), float(self.scales.max())

    def _divides(self, dtype: torch.dtype) -> bool:
        least, most = self._extremes
        range_ = torch.finfo(dtype)
        return bool(range_.tiny**0.5 <= least and most <= range_.max**0.5)


@dataclass(frozen=True, eq=False)
class Band:
    """Every state of a chain of ``length`` steps is changed by the defects of the last ``order`` steps, unchanged."""

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
        """``M r``, as :meth:`LinearPart.sweep`; a band is the same wherever in the chain a window begins."""
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
    """Derivatives of the last ``n`` steps of a chain at the states of a round; earlier steps are solved.

    A step whose derivative is not finite hands no defect on, and a state at which the sweep is not finite gets the
    defect of its own step alone.
    """

    steps: Float[Tensor, "B n d"] | Float[Tensor, "B n d d"]

    def sweep(self, defects: Float[Tensor, "B N d"]) -> Float[Tensor, "B N d"]:
        """``M r``: the change of every state that the defects imply."""
        solved, own = defects.tensor_split([defects.shape[1] - self.steps.shape[1]], dim=1)
        swept = linear_recurrence(torch.where(self.steps.isfinite(), self.steps, 0.0), own)
        return torch.cat([solved, _sound(swept, own)], dim=1)


def _sound(swept: Float[Tensor, "B n d"], defects: Float[Tensor, "B n d"]) -> Float[Tensor, "B n d"]:
    """The sweep, but the defect of its own step alone for a state at which it is not finite."""
    return torch.where(swept.isfinite().all(dim=2, keepdim=True), swept, defects)


def _plus_later(sums: Float[Tensor, "B p d"], more: Float[Tensor, "B p d"], by: int) -> Float[Tensor, "B p d"]:
    """``sums``, and ``more`` of so many steps before."""
    if by == 0:
        return sums + more
    return torch.cat([sums[:, :by], sums[:, by:] + more[:, :-by]], dim=1)
