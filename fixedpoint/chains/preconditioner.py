r"""Linear parts of a chain: how a defect in one step changes all later states.

One round evaluates the defects ``r_i = Phi_i(x_i) - x_{i+1}`` and, with a guess ``A_i`` of the slope of ``Phi_i``,
sweeps them along the chain: ``delta_{i+1} = r_i + A_i delta_i``, ``delta_0 = 0``. That is ``X <- X + M r`` with the
lower-triangular ``N x N`` matrix ``M[i, k] = A_i A_{i-1} ... A_{k+1}`` for ``k <= i`` (row ``i`` is state ``i+1``).

    zero         A = 0                    Jacobi: every step from its own input
    identity     A = 1                    ParaDiGMS (Shih et al. 2023)
    coefficient  A = the step's own       DEQ-DDIM (Pokle, Geng & Kolter 2022, eq. 9)
    diagonal     A = diag dPhi_i/dx       quasi-DEER (Gonzalez et al. 2024)
    jacobian     A = dPhi_i/dx            DEER, Newton's method (Lim et al. 2024)

With one known number a step ``M`` is a running product, so ``M r`` is a running sum between two scalings: ``N d``
operations in place of ``N^2 d``, and the same bits for a row whatever its batch. Derivatives are taken anew at the
states of every round, and swept by a parallel scan: ``N d`` operations for diagonals, ``N d^3`` and ``N d^2`` numbers
for Jacobians.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.scan import linear_recurrence

__all__ = ["Derivatives", "LinearPart", "Preconditioner", "linear_part"]

Preconditioner = Literal["zero", "identity", "coefficient", "diagonal", "jacobian"]


@dataclass(frozen=True, eq=False)
class LinearPart:
    """Slopes ``A_0 .. A_{N-1}`` of a chain, float64; ``A_0`` is never used, since ``x_0`` is given."""

    kind: Preconditioner
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

    def sweep(self, defects: Float[Tensor, "B N d"], first: Tensor | None = None) -> Float[Tensor, "B N d"]:
        """``M r``: the change of every state that the defects imply."""
        if self.kind == "zero":
            return defects
        if self.kind == "identity":
            return defects.cumsum(dim=1)
        scales = self.scales.to(defects.dtype)
        return (defects / scales).cumsum(dim=1) * scales


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
        sound = swept.isfinite().all(dim=2, keepdim=True)
        return torch.cat([solved, torch.where(sound, swept, own)], dim=1)


def linear_part(
    kind: Preconditioner, length: int, coefficients: Float[Tensor, " N"] | None, like: Tensor
) -> LinearPart:
    """The linear part of a chain with one number a step, by name.

    Parameters
    ----------
    kind
        Its name: zero, identity or coefficient.
    length
        ``N``.
    coefficients
        The slope of every step in its own state, where known; wanted for ``"coefficient"``.
    like
        A tensor of the dtype and device of the states.

    Raises
    ------
    TypeError
        For ``"coefficient"`` when the chain has no known coefficients.
    ValueError
        When the coefficients after the first are not positive and finite, or their product along the chain leaves
        the range of the dtype.
    """
    if kind != "coefficient":
        slope = 1.0 if kind == "identity" else 0.0
        return LinearPart(kind, torch.full((length,), slope, dtype=torch.float64, device=like.device))
    if coefficients is None:
        raise TypeError(
            "preconditioner='coefficient' wants a chain that knows its coefficients, and this one has none; take "
            "'identity' or 'zero'"
        )
    slopes = coefficients.double().to(like.device)
    if not bool(((slopes[1:] > 0) & slopes[1:].isfinite()).all()):
        raise ValueError(f"the chain's coefficients must be positive and finite, got {slopes.tolist()}")
    part = LinearPart(kind, slopes)
    range_ = torch.finfo(like.dtype)
    if bool(((part.scales < range_.tiny**0.5) | (part.scales > range_.max**0.5)).any()):
        raise ValueError(
            f"the product of the chain's coefficients runs from {float(part.scales.min()):.1e} to "
            f"{float(part.scales.max()):.1e}, which {like.dtype} cannot hold; take preconditioner='identity'"
        )
    return part
