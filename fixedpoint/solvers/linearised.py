"""What Newton's method and the trust region share: the Jacobian of every row, kept, renewed or updated.

The Jacobian ``B`` of ``r(z) = f(z) - z`` is computed anew where it is stale. Between two computations, a step ``s``
that changed ``r`` by ``dr`` may update it (Broyden 1965, "A class of methods for solving nonlinear simultaneous
equations", eq. 4.5):

    B <- B + (dr - B s) s^T / (s^T s)

Its columns are scaled by ``d_j = ||B e_j||``, so that the unit of an unknown has no influence. Singular values below
``D eps`` times the largest count as zero. All of this is in float64, whatever the dtype of the state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.problem import AbilityError
from fixedpoint.core.reduce import row_dots, row_norms
from fixedpoint.core.transfer import to_device

__all__ = ["Factors", "Linearised", "Products", "probe", "refuse_recording"]

Products = Literal["auto", "forward", "difference"]


def refuse_recording(name: str) -> None:
    """Raise ``AbilityError`` while autograd records: it would not see the Jacobians."""
    if torch.is_grad_enabled():
        raise AbilityError(f"{name} cannot be unrolled: autograd would not see its Jacobians")


@dataclass(frozen=True)
class Linearised:
    """The Jacobian of every row, ``(B, D, D)``, float64.

    ``stale`` marks the rows that need a new one, ``fresh`` those whose Jacobian is that at their present point.
    """

    matrix: Float[Tensor, "B D D"]
    stale: Bool[Tensor, " B"]
    fresh: Bool[Tensor, " B"]

    @staticmethod
    def begin(at: Evaluated) -> Linearised:
        """Return what holds before the first step: every Jacobian is stale."""
        rows, size = at.z.shape
        matrix = torch.zeros(rows, size, size, dtype=torch.float64, device=at.z.device)
        none = torch.zeros(rows, dtype=torch.bool, device=at.z.device)
        return Linearised(matrix, ~none, none)

    def renewed(self, f: Evaluator, at: Evaluated, jacobian: Products) -> Linearised | None:
        """Compute the stale Jacobians of running rows; None if the limit leaves no rounds for them and a point.

        The host reads which rows these are, the one wait of a step. A Jacobian that is not finite becomes ``-I``, that
        of a constant ``f``.
        """
        running = f.running
        due = self.stale.cpu().numpy() & running
        if not due.any():
            return self
        f.narrow(due)
        found = f.jacobian(at, {"auto": None, "forward": True, "difference": False}[jacobian])
        f.narrow(running)
        if found is None:
            return None
        plain = -torch.eye(found.shape[1], dtype=found.dtype, device=found.device)
        found = torch.where(found.isfinite().all(dim=2).all(dim=1)[:, None, None], found, plain)
        rows = to_device(due, at.z.device)
        matrix = torch.where(rows[:, None, None], found, self.matrix)
        return Linearised(matrix, self.stale & ~rows, self.fresh | rows)

    def updated(self, rows: Bool[Tensor, " B"], step: Float[Tensor, "B D"], change: Float[Tensor, "B D"]) -> Linearised:
        """Apply Broyden's update in ``rows``: ``change`` is what the residual changed by along ``step``."""
        square = row_norms(step).square()
        sound = rows & (square > 0) & change.isfinite().all(dim=1)
        missed = (change - row_dots(self.matrix, step)) / torch.where(sound, square, 1.0).unsqueeze(1)
        missed = torch.where(sound.unsqueeze(1), missed, 0.0)
        return replace(self, matrix=self.matrix + missed.unsqueeze(2) * step.unsqueeze(1), fresh=self.fresh & ~rows)

    @property
    def sizes(self) -> Float[Tensor, "B D"]:
        """The norms of the columns."""
        rows, size, _ = self.matrix.shape
        return row_norms(self.matrix.mT.contiguous().reshape(rows * size, size)).reshape(rows, size)


@dataclass(frozen=True)
class Factors:
    """``B D^{-1} = U diag(S) V^T`` of every row, with ``S`` in units of the largest one, ``top``, ``(B, 1)``.

    ``scale`` is the diagonal of ``D``. ``kept`` marks the singular values that do not count as zero.
    """

    left: Float[Tensor, "B D D"]
    values: Float[Tensor, "B D"]
    right: Float[Tensor, "B D D"]
    top: Float[Tensor, "B 1"]
    scale: Float[Tensor, "B D"]
    kept: Bool[Tensor, "B D"]

    @staticmethod
    def of(matrix: Float[Tensor, "B D D"], scale: Float[Tensor, "B D"], eps: float) -> Factors:
        """Factorise the scaled Jacobians; ``eps`` is the precision to which they are known."""
        scaled = matrix / scale.unsqueeze(1)
        sound = scaled.isfinite().all(dim=2).all(dim=1)  # updates and units may overflow
        plain = -torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        left, values, right = torch.linalg.svd(torch.where(sound[:, None, None], scaled, plain))
        top = values[:, :1]
        values = values / torch.where(top > 0, top, 1.0)
        kept = values > matrix.shape[1] * eps
        return Factors(left.mT.contiguous(), values, right.mT.contiguous(), top, scale, kept)

    def along(self, residual: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``U^T r / top``."""
        return row_dots(self.left, residual) / torch.where(self.top > 0, self.top, 1.0)

    def step(self, weights: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """``-D^{-1} V w``, the step of a combination of right singular vectors."""
        return -row_dots(self.right, weights) / self.scale

    def newton(self, residual: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Newton's step ``-B^+ r``, the shortest one in the scaled unknowns where ``B`` is singular."""
        weights = self.along(residual) / torch.where(self.kept, self.values, 1.0)
        return self.step(torch.where(self.kept, weights, 0.0))


def probe(at: Evaluated, step: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Bool[Tensor, " B"]]:
    """Lengthen steps that are lost to rounding in rows that only lack the proof that they are solved.

    A measure may accept a point only beside another one (``Evaluated.settled``). Where the step is within rounding of
    ``z``, there is no second point: such a row steps away by ``sqrt(eps) ||z||`` once, and comes back. Returns the
    steps and the rows that were lengthened.
    """
    if at.settled is None:
        return step, torch.zeros_like(at.finite)
    eps = torch.finfo(at.z.dtype).eps
    length, reach = row_norms(step), row_norms(at.z)
    lost = ~at.settled & (length <= 64 * eps * reach) & (reach > 0)
    even = torch.full_like(step, step.shape[1] ** -0.5)
    direction = torch.where((length > 0).unsqueeze(1), step / torch.where(length > 0, length, 1.0).unsqueeze(1), even)
    return torch.where(lost.unsqueeze(1), direction * (eps**0.5 * reach).unsqueeze(1), step), lost
