r"""Golub-Kahan bidiagonalisation, and the damped least-squares steps that it gives for every damping at once.

From ``beta u_1 = b`` and ``alpha v_1 = J^T u_1``,

    J V_k = U_{k+1} B_k,    b = beta U_{k+1} e_1

with orthonormal ``U`` and ``V`` and a small bidiagonal matrix ``B_k``. The minimiser of ``|J d - b|^2 + mu |d|^2`` over
the span of ``V_k`` follows from ``B_k`` alone, so that another ``mu`` requires no product (Golub & Kahan 1965; Paige &
Saunders 1982, "LSQR: An algorithm for sparse linear equations and sparse least squares", eq. 3.1 and 4.2).

Where we differ: both bases are orthogonalised again in full, since products by differences are not exact, and a few
dozen vectors cost little. The bases and the small matrices are kept in float64, one for each row of a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Bidiagonalisation"]

Product = Callable[[Tensor], Tensor]

# A vector shorter than this share of what it was made of is rounding, and its basis ends.
_ENDS = 1e-5


class Bidiagonalisation:
    """The bidiagonalisation of one matrix for each row of a batch.

    Parameters
    ----------
    forward, backward
        ``J v`` and ``J^T u`` of each row, for vectors of shape ``(B, d)``.
    rhs
        ``b``, shape ``(B, d)``.
    sizes
        Shape ``(B,)``, int64: how many vectors of the basis each row uses; those after them are ignored.
    """

    def __init__(
        self, forward: Product, backward: Product, rhs: Float[Tensor, "B d"], sizes: Int[Tensor, " B"]
    ) -> None:
        self.sizes = sizes
        self._forward, self._backward, self._like = forward, backward, rhs
        b = rhs.double()
        self.size = b.norm(dim=1)
        self.left = [_scaled(b, self.size)]
        self.right: list[Tensor] = []
        self._columns: list[tuple[Tensor, Tensor]] = []
        self.ended = self.size == 0

    def extend(self) -> None:
        """Add one vector to both bases, by one product with ``J^T`` and one with ``J``."""
        v = self._backward(self.left[-1].to(self._like)).double()
        v, alpha = self._cleaned(v, self.right)
        self.right.append(v)
        u = self._forward(v.to(self._like)).double()
        # The diagonal entry is that of the product itself, which need not be the transpose of the other to the bit.
        inner = (u * self.left[-1]).sum(dim=1)
        u, beta = self._cleaned(u, self.left)
        self.left.append(u)
        self._columns.append((torch.where(alpha > 0, inner, 0.0), beta))

    def step(self, damping: Float[Tensor, " B"]) -> Float[Tensor, "B d"]:
        """Return the damped step ``d``; ``damping`` is ``mu`` in units of the largest squared singular value."""
        weights, _ = self._solved(damping)
        return (weights.unsqueeze(2) * torch.stack(self.right, dim=1)).sum(dim=1).to(self._like)

    def remaining(self, damping: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return ``|J d - b|`` of the damped step, float64."""
        return self._solved(damping)[1]

    def _solved(self, damping: Float[Tensor, " B"]) -> tuple[Float[Tensor, "B k"], Float[Tensor, " B"]]:
        k = len(self.right)
        small = self.size.new_zeros(len(self.size), k + 1, k)
        for place, (diagonal, below) in enumerate(self._columns):
            small[:, place, place], small[:, place + 1, place] = diagonal, below
        weights, left = torch.zeros(len(small), k, dtype=torch.float64), torch.zeros(len(small), dtype=torch.float64)
        # One after the other and on the host: the bits of a row are then the same in every batch.
        parts = zip(small.cpu(), self.size.cpu(), damping.cpu(), self.sizes.tolist(), strict=True)
        for row, (matrix, size, mu, used) in enumerate(parts):
            used = min(used, k)
            weights[row, :used], left[row] = _damped(matrix[: used + 1, :used], size, mu)
        return weights.to(self.size.device), left.to(self.size.device)

    def _cleaned(self, vector: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return a vector made orthogonal to a basis and scaled, and its length; zero where nothing is left."""
        before = vector.norm(dim=1)
        for known in [torch.stack(basis, dim=1)] * 2 if basis else []:
            inner = (known * vector.unsqueeze(1)).sum(dim=2, keepdim=True)
            vector = vector - (inner * known).sum(dim=1)
        length = vector.norm(dim=1)
        none: Bool[Tensor, " B"] = ~(length > _ENDS * before) | self.ended
        self.ended = self.ended | none
        length = length.masked_fill(none, 0.0)
        return _scaled(vector, length), length


def _scaled(vector: Tensor, length: Tensor) -> Tensor:
    zero = (length == 0).unsqueeze(1)
    return (vector / length.unsqueeze(1).masked_fill(zero, 1.0)).masked_fill(zero, 0.0)


def _damped(small: Float[Tensor, "m k"], size: Tensor, mu: Tensor) -> tuple[Float[Tensor, " k"], Tensor]:
    """Solve one small damped least-squares problem with the right-hand side ``size e_1``; return its rest, too."""
    left, values, right = torch.linalg.svd(small, full_matrices=False)
    damping = mu * values[0].square().clamp(min=torch.finfo(values.dtype).tiny)
    weights: Tensor = right.T @ (values / (values.square() + damping) * size * left[0])
    rest = small @ weights
    rest[0] -= size
    return weights, rest.norm()
