r"""Linear parts of a chain: how a defect in one step changes all later states.

One round evaluates the defects ``r_i = Phi_i(x_i) - x_{i+1}`` and, with a guess ``A_i`` of the slope of ``Phi_i``,
sweeps them along the chain: ``delta_{i+1} = r_i + A_i delta_i``, ``delta_0 = 0``. That is ``X <- X + M r`` with the
lower-triangular ``N x N`` matrix ``M[i, k] = A_i A_{i-1} ... A_{k+1}`` for ``k <= i`` (row ``i`` is state ``i+1``).

    zero         A = 0                    Jacobi: every step from its own input
    identity     A = 1                    ParaDiGMS (Shih et al. 2023)
    coefficient  A = the step's own       DEQ-DDIM (Pokle, Geng & Kolter 2022, eq. 9)

``M`` is a running product, so ``M r`` is a running sum between two scalings: ``N d`` operations in place of
``N^2 d``, and the same bits for a row whatever its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LinearPart", "Preconditioner", "linear_part"]

Preconditioner = Literal["zero", "identity", "coefficient"]


@dataclass(frozen=True, eq=False)
class LinearPart:
    """Slopes ``A_0 .. A_{N-1}`` of a chain, float64; ``A_0`` is never used, since ``x_0`` is given."""

    kind: Preconditioner
    slopes: Float[Tensor, " N"]

    def __len__(self) -> int:
        return len(self.slopes)

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

    def sweep(self, defects: Float[Tensor, "B N d"]) -> Float[Tensor, "B N d"]:
        """``M r``: the change of every state that the defects imply."""
        if self.kind == "zero":
            return defects
        if self.kind == "identity":
            return defects.cumsum(dim=1)
        scales = self.scales.to(defects.dtype)
        return (defects / scales).cumsum(dim=1) * scales


def linear_part(
    kind: Preconditioner, length: int, coefficients: Float[Tensor, " N"] | None, like: Tensor
) -> LinearPart:
    """The linear part of a chain by name.

    Parameters
    ----------
    kind
        Its name.
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
