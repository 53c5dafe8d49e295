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

All of this is for opaque steps (``fixedpoint.chains.recurrence.recurrence.Shift``). For other recurrences the slopes
are those of the predictions, and the recurrence itself carries the changes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.recurrence.recurrence import Held, Recurrence, Shift, in_window
from fixedpoint.chains.scan import linear_recurrence, running_sums

__all__ = ["Band", "Derivatives", "LinearPart"]


@dataclass(frozen=True, eq=False)
class LinearPart:
    """The linear part made of one slope per prediction.

    Attributes
    ----------
    slopes
        ``A_0 .. A_{N-1}``, shape ``(N,)``, float64. ``A_0`` is never used, since ``x_0`` is given. The others are
        finite and may be zero or negative.
    recurrence
        The recurrence that joins the predictions.
    """

    slopes: Float[Tensor, " N"]
    recurrence: Recurrence = field(default_factory=Shift)

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

    def sweep(
        self,
        defects: Float[Tensor, "B p d"],
        held: Held | None = None,
        earlier: Float[Tensor, "B g d"] | None = None,
    ) -> Float[Tensor, "B p d"]:
        """Return ``M r``, the change of every state that the defects of a window of the chain imply.

        Parameters
        ----------
        defects
            Shape ``(B, p, d)``: the defects of the predictions in the window. All other defects count as zero, and
            entries beyond the end of the chain must be zero.
        held
            The window; None: all predictions of a chain of opaque steps.
        earlier
            Changes of the inputs ``held.base``, which are carried on, too; None: zero.

        Returns
        -------
        Float[Tensor, "B p d"]
            The changes of the states after these predictions, equal to those of a sweep of the whole chain.
        """
        if not isinstance(self.recurrence, Shift):
            assert held is not None
            return _sound(self.recurrence.carried(held, defects, self.slopes, earlier=earlier), defects)
        if earlier is not None:
            defects = self._with_earlier(defects, held, earlier)
        if self._kinds <= {0.0}:
            return defects
        if self.is_identity:
            return defects.cumsum(dim=1)
        count, first = defects.shape[1], None if held is None else held.first
        if self._divides(defects.dtype):
            scales = in_window(self.scales.to(defects.dtype), first, count)
            return (defects / scales).cumsum(dim=1) * scales
        slopes = in_window(self.slopes.to(defects.dtype), first, count).unsqueeze(2)
        return _sound(linear_recurrence(slopes, defects), defects)

    def wide_sweep(
        self, defects: Float[Tensor, "B p d"], held: Held, earlier: Float[Tensor, "B g d"] | None = None
    ) -> Float[Tensor, "B p d"]:
        """Return ``M r`` in float32 or wider; this may overwrite ``defects`` unless autograd records."""
        if not self.is_identity:
            return self.sweep(defects.to(torch.promote_types(defects.dtype, torch.float32)), held, earlier)
        return running_sums(defects if earlier is None else self._with_earlier(defects, held, earlier))

    def _with_earlier(self, defects: Tensor, held: Held | None, earlier: Tensor) -> Tensor:
        """Add to the first defect what the change of the input before the window passes on."""
        first = None if held is None else held.first
        # The first slope may be anything: ``x_0`` does not change.
        slope = in_window(self.slopes, first, 1).to(defects.dtype).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        passed = slope * earlier[:, -1].to(defects.dtype)
        if torch.is_grad_enabled():
            return torch.cat([defects[:, :1] + passed.unsqueeze(1), defects[:, 1:]], dim=1)
        defects[:, 0] += passed
        return defects

    @property
    def is_identity(self) -> bool:
        """Whether every defect is carried on unchanged: all slopes are 1, and every state is a prediction."""
        return self._kinds <= {1.0} and isinstance(self.recurrence, Shift)

    @cached_property
    def _kinds(self) -> set[float]:
        return set(self.numbers[1:])

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
        ones = torch.ones(self.length, self.length, dtype=torch.float64, device="cpu")
        return ones.tril() - ones.tril(-self.order)

    def sweep(self, defects: Float[Tensor, "B p d"], held: Held | None = None) -> Float[Tensor, "B p d"]:
        """Return ``M r``, as :meth:`LinearPart.sweep`; a band is the same in every window."""
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
    """The linear part made of the derivatives of the last ``n`` predictions, taken at the states of a round.

    Earlier steps are solved and pass no change on. A step whose derivative is not finite carries no defect on. A state
    at which the sweep is not finite changes by the defect of its own step alone.

    Attributes
    ----------
    steps
        Diagonals, shape ``(B, n, d)``, or Jacobians, shape ``(B, n, d, d)``.
    recurrence
        The recurrence that joins the predictions.
    """

    steps: Float[Tensor, "B n d"] | Float[Tensor, "B n d d"]
    recurrence: Recurrence = field(default_factory=Shift)

    def sweep(self, defects: Float[Tensor, "B N d"], held: Held | None = None) -> Float[Tensor, "B N d"]:
        """Return ``M r``, the change of every state that the defects imply."""
        slopes = torch.where(self.steps.isfinite(), self.steps, 0.0)
        if not isinstance(self.recurrence, Shift):
            assert held is not None
            skipped = defects.shape[1] - slopes.shape[1]

            def respond(slot: int, change: Tensor) -> Tensor:
                slope = slopes[:, slot - skipped]
                return slope * change if slope.ndim == 2 else (slope @ change.unsqueeze(2)).squeeze(2)

            return _sound(self.recurrence.carried(held, defects, respond=respond), defects)
        solved, own = defects.tensor_split([defects.shape[1] - slopes.shape[1]], dim=1)
        swept = linear_recurrence(slopes, own)
        return torch.cat([solved, _sound(swept, own)], dim=1)


def _sound(swept: Float[Tensor, "B n d"], defects: Float[Tensor, "B n d"]) -> Float[Tensor, "B n d"]:
    """Replace the sweep by the defect of the state's own step where it is not finite; in place unless autograd records.

    No temporary of the size of the states is made.
    """
    finite = swept.detach().amin(dim=2).isfinite() & swept.detach().amax(dim=2).isfinite()
    out = None if torch.is_grad_enabled() else swept
    return torch.where(finite.unsqueeze(2), swept, defects, out=out)


def _plus_later(sums: Float[Tensor, "B p d"], more: Float[Tensor, "B p d"], by: int) -> Float[Tensor, "B p d"]:
    """Return ``sums`` plus ``more`` of ``by`` steps earlier."""
    if by == 0:
        return sums + more
    return torch.cat([sums[:, :by], sums[:, by:] + more[:, :-by]], dim=1)
