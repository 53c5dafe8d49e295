r"""The canonical polyadic decomposition of a tensor by alternating least squares.

    X_ijk ~ sum_r a_ir b_jr c_kr
    A = X_(1) (C o B) (C^T C * B^T B)^{-1},  then B from the new A,  then C from both

(Carroll & Chang 1970, Harshman 1970; Kolda & Bader 2009, "Tensor decompositions and applications", section 3.4 and
figure 3.3; ``o`` is the columnwise Kronecker product, ``*`` the entrywise product.) One iteration consists of all three
updates. The columns of ``A`` and ``B`` are scaled to unit length; otherwise the factors of a solution could be rescaled
continuously, and fixed points would not be isolated. The order and the signs of the terms remain free, which is a
discrete choice. Collinear columns cause "swamps", hundreds of iterations with hardly any progress (Mitchell & Burdick
1994, "Slowly converging PARAFAC sequences"). The tensor has exactly rank ``R``, so that the solution reproduces it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_norms
from fixedpoint_classic.problem import ClassicProblem, RandomTask, apply

__all__ = ["CPALS", "CPProblem"]


@dataclass(eq=False)
class CPProblem(ClassicProblem):
    """One iteration of ALS; the state holds ``A``, ``B`` and ``C`` one after another, ``D = (I + J + K) R``.

    Attributes
    ----------
    tensor
        The tensor, shape ``(B, I, J, K)``.
    truth
        The factors that the tensor was made of, shape ``(B, D)``.
    rank
        ``R``, the number of terms.
    """

    tensor: Float[Tensor, "B I J K"]
    truth: Float[Tensor, "B D"]
    rank: int

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        _, b, c = self.factors(z)
        a = _update(self.tensor, b, c)
        b = _update(self.tensor.transpose(1, 2), a, c)
        a, b = _unit(a), _unit(b)
        c = _update(self.tensor.permute(0, 3, 1, 2), a, b)
        return torch.cat([factor.transpose(1, 2).flatten(1) for factor in (a, b, c)], dim=1)

    def factors(self, z: Float[Tensor, "B D"]) -> list[Float[Tensor, "B R n"]]:
        """The three factors, transposed so that every row belongs to one term."""
        sizes = self.tensor.shape[1:]
        parts = z.split([size * self.rank for size in sizes], dim=1)
        return [part.unflatten(1, (size, self.rank)).transpose(1, 2) for part, size in zip(parts, sizes, strict=True)]

    def reference(self) -> Float[Tensor, "B D"]:
        """The factors that the tensor was made of; other orders and signs of the terms are solutions as well."""
        return self.truth

    def error(self, z: Float[Tensor, "B D"], exact: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """The relative error of the reconstructed tensor, which is the same for all orders and signs of the terms."""
        whole = self.tensor.flatten(1).double()
        return row_norms(self.reconstruct(z).flatten(1).double() - whole) / row_norms(whole)

    def reconstruct(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B I J K"]:
        """The tensor with the given factors."""
        whole: Tensor = torch.einsum("bri,brj,brk->bijk", *self.factors(z))
        return whole


@dataclass(frozen=True)
class CPALS(RandomTask):
    """ALS on random tensors of exactly low rank, from random factors."""

    sizes: tuple[int, ...] = option((10, 9, 8), help="I, J and K")
    rank: int = option(3, ge=1, help="R: number of terms")
    collinearity: float = option(
        0.5, ge=0.0, lt=1.0, help="cosine of the angle between columns of a factor; hard above .9"
    )

    def check(self) -> None:
        if len(self.sizes) != 3 or min(self.sizes) < self.rank:
            raise self.refuse("sizes", f"must be three numbers of at least the rank, {self.rank}, got {self.sizes}")

    def draw(self, generator: torch.Generator) -> CPProblem:
        # Orthonormal columns mixed by a Cholesky factor of the wanted Gram matrix have exactly these cosines.
        cosines = (1 - self.collinearity) * torch.eye(self.rank, dtype=torch.float64, device="cpu") + self.collinearity
        mixing = torch.linalg.cholesky(cosines).T
        truth, start = [], []
        for size in self.sizes:
            gaussian = torch.randn(size, self.rank, generator=generator, dtype=torch.float64, device="cpu")
            truth.append((torch.linalg.qr(gaussian).Q @ mixing).flatten())
            start.append(torch.randn(size, self.rank, generator=generator, dtype=torch.float64, device="cpu").flatten())
        problem = CPProblem(
            torch.cat(start).unsqueeze(0),
            torch.zeros(1, *self.sizes, dtype=torch.float64, device="cpu"),
            torch.cat(truth).unsqueeze(0),
            self.rank,
        )
        return CPProblem(problem.start, problem.reconstruct(problem.truth), problem.truth, self.rank)


def _update(tensor: Float[Tensor, "B I J K"], second: Float[Tensor, "B R J"], third: Float[Tensor, "B R K"]) -> Tensor:
    """The least-squares factor ``(B, R, I)`` of the first mode, given the other two."""
    pairs = (second.unsqueeze(3) * third.unsqueeze(2)).flatten(2)
    projected = apply(tensor.flatten(2).unsqueeze(1), pairs)
    gram = apply(second.unsqueeze(1), second) * apply(third.unsqueeze(1), third)
    return _eliminate(gram, projected)


def _eliminate(gram: Float[Tensor, "B R R"], rhs: Float[Tensor, "B R n"]) -> Float[Tensor, "B R n"]:
    """``gram^{-1} rhs`` by Gauss-Jordan elimination, elementwise over the batch.

    Pivoting is not required, since the matrices are positive definite. A batched factorisation might round a row in a
    batch differently from the same row alone.
    """
    system = torch.cat((gram, rhs), dim=2)
    for r in range(gram.shape[1]):
        row = system[:, r : r + 1] / system[:, r : r + 1, r : r + 1]
        system = system - system[:, :, r : r + 1] * row
        system = torch.cat((system[:, :r], row, system[:, r + 1 :]), dim=1)
    return system[:, :, gram.shape[1] :]


def _unit(factor: Float[Tensor, "B R n"]) -> Float[Tensor, "B R n"]:
    """The factor with every term scaled to unit length."""
    norms = row_norms(factor.flatten(0, 1)).view(*factor.shape[:2], 1)
    return factor / norms.to(factor)
