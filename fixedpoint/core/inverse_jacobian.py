"""InverseEstimate: what a quasi-Newton method has learnt of the inverse Jacobian, for the backward pass to use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.reduce import add_combination, row_dots

__all__ = ["InverseEstimate", "LowRankInverse"]


class InverseEstimate(ABC):
    """``H``, an estimate of ``(J - I)^{-1}``, the inverse Jacobian of ``f(z) - z``, row by row.

    ``solution.extras["inverse"]`` where a gradient estimator asked for it; its rows are those of the solution.
    """

    @abstractmethod
    def apply(self, v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``H v``."""

    @abstractmethod
    def transpose_apply(self, v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``H^T v``."""


@dataclass(frozen=True)
class LowRankInverse(InverseEstimate):
    """``H = -I + L S R^T`` with the columns ``L`` and ``R`` and a small symmetric ``S``, in float64.

    Attributes
    ----------
    left, right
        Shape ``(B, m, D)``.
    small
        Applies ``S`` to coefficients ``(B, m)``.
    """

    left: Float[Tensor, "B m D"]
    right: Float[Tensor, "B m D"]
    small: Callable[[Float[Tensor, "B m"]], Float[Tensor, "B m"]]

    def apply(self, v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``H v``."""
        return self._through(v, self.right, self.left)

    def transpose_apply(self, v: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``H^T v``."""
        return self._through(v, self.left, self.right)

    def _through(self, v: Tensor, seen: Tensor, made: Tensor) -> Tensor:
        if not made.shape[1]:
            return -v
        return add_combination(-v, made, self.small(row_dots(seen, v)).unsqueeze(1))
