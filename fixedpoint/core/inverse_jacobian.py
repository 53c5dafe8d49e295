"""Estimates of the inverse Jacobian that quasi-Newton methods build, for use in the backward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.combine import add_combination
from fixedpoint.core.reduce import row_dots

__all__ = ["InverseEstimate", "LowRankInverse"]


class InverseEstimate(ABC):
    """``H``, an estimate of ``(J - I)^{-1}``, the inverse Jacobian of ``f(z) - z``, row by row.

    Stored as ``solution.extras["inverse"]`` if a gradient estimator requires it. Its rows are those of the solution.
    """

    @abstractmethod
    def apply(self, v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return ``H v``, shape ``(B, D)``."""

    @abstractmethod
    def transpose_apply(self, v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return ``H^T v``, shape ``(B, D)``."""


@dataclass(frozen=True)
class LowRankInverse(InverseEstimate):
    """``H = -I + L S R^T`` with the columns ``L`` and ``R`` and a small symmetric matrix ``S``.

    Attributes
    ----------
    left, right
        Shape ``(B, m, D)``: the columns of ``L`` and ``R``.
    small
        Applies ``S`` to coefficients ``(B, m)``, float64.
    """

    left: Float[Tensor, "B m D"]
    right: Float[Tensor, "B m D"]
    small: Callable[[Float[Tensor, "B m"]], Float[Tensor, "B m"]]

    def apply(self, v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return ``H v``, shape ``(B, D)``."""
        return self._through(v, self.right, self.left)

    def transpose_apply(self, v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return ``H^T v``, shape ``(B, D)``."""
        return self._through(v, self.left, self.right)

    def _through(self, v: Tensor, seen: Tensor, made: Tensor) -> Tensor:
        """Return ``-v + made S seen^T v``."""
        if not made.shape[1]:
            return -v
        return add_combination(-v, made, self.small(row_dots(seen, v)).unsqueeze(1))
