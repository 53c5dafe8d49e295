"""Problems with known answers to test solvers on, in this package and in others.

Every problem is batched and uses operations that treat a row the same way whatever its batch (elementwise products and
sums along the row, no matrix kernels). A difference between a row alone and a row in a batch is therefore caused by the
solver. Rows can be taken, and a problem can be cast to another dtype.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.core.layout import Layout
from fixedpoint.core.problem import HasTake, Problem

__all__ = [
    "DOTTIE",
    "Affine",
    "Constant",
    "Cosine",
    "HEquation",
    "Hopeless",
    "KnownProblem",
    "PeriodTwo",
    "RowProblem",
    "TanhCell",
    "affine_contraction",
    "tanh_cell",
]

DOTTIE = 0.7390851332151606
"""The number that equals its own cosine."""


class TakeableProblem(Problem, HasTake):
    """A problem that can be restricted to some of its rows."""

    @abstractmethod
    def take(self, rows: Int[Tensor, " k"]) -> TakeableProblem:
        """Return the problem of some of the rows."""


@dataclass(eq=False)
class RowProblem(TakeableProblem):
    """A problem defined by tensors whose first dimension is the batch, among them ``start``.

    Attributes
    ----------
    start
        Shape ``(B, D)``: the state a solve begins from.
    """

    layout: Layout = field(init=False, repr=False)
    start: Float[Tensor, "B D"]

    def __post_init__(self) -> None:
        self.layout = Layout.of(self.start, "independent")

    def initial(self) -> Float[Tensor, "B D"]:
        return self.start.clone()

    def take(self, rows: Int[Tensor, " k"]) -> Self:
        return replace(self, **{name: value[rows] for name, value in self._tensors().items()})

    def astype(self, dtype: torch.dtype) -> Self:
        """Return the problem in another dtype; its coefficients and its solution are rounded."""
        return replace(self, **{name: value.to(dtype) for name, value in self._tensors().items()})

    def starting_at(self, start: Float[Tensor, "B D"]) -> Self:
        """Return the problem with another start."""
        return replace(self, start=start)

    def _tensors(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}


@dataclass(eq=False)
class KnownProblem(RowProblem):
    """A problem with a known solution.

    Attributes
    ----------
    solution
        Shape ``(B, D)``.
    """

    solution: Float[Tensor, "B D"]


@dataclass(eq=False)
class Affine(KnownProblem):
    """``f(z) = A z + b`` with a matrix for every row.

    Attributes
    ----------
    matrix
        ``A``, shape ``(B, D, D)``.
    offset
        ``b``, shape ``(B, D)``.
    """

    matrix: Float[Tensor, "B D D"]
    offset: Float[Tensor, "B D"]

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return (self.matrix * z.unsqueeze(1)).sum(-1) + self.offset


@dataclass(eq=False)
class TanhCell(KnownProblem):
    """``f(z) = tanh(W z + b)``, the cell of the simplest equilibrium model.

    Attributes
    ----------
    weight
        ``W``, shape ``(B, D, D)``.
    offset
        ``b``, shape ``(B, D)``.
    """

    weight: Float[Tensor, "B D D"]
    offset: Float[Tensor, "B D"]

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return torch.tanh((self.weight * z.unsqueeze(1)).sum(-1) + self.offset)


@dataclass(eq=False)
class Cosine(RowProblem):
    """``f(z) = cos(z)``, elementwise; the solution is the Dottie number."""

    @property
    def solution(self) -> Float[Tensor, "B D"]:
        return torch.full_like(self.start, DOTTIE)

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return z.cos()


@dataclass(eq=False)
class Constant(KnownProblem):
    """``f(z) = c``, for which every history of differences is zero."""

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return self.solution.clone()


@dataclass(eq=False)
class PeriodTwo(KnownProblem):
    """``f(z) = 2 c - z``, with solution ``c``; plain iteration alternates between two points."""

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return 2 * self.solution - z


@dataclass(eq=False)
class Hopeless(RowProblem):
    """``f(z) = z + 1 + z^2``, which has no real fixed point; plain iteration overflows within a few rounds."""

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return z + 1 + z * z


@dataclass(eq=False)
class HEquation(RowProblem):
    r"""Chandrasekhar's H-equation on the midpoint grid ``mu_i = (i - 1/2) / n``.

        H(mu) = (1 - (c / 2n) sum_j mu H(mu_j) / (mu + mu_j))^{-1}

    (Chandrasekhar 1960, "Radiative transfer"; Kelley 1995, "Iterative methods for linear and nonlinear equations",
    section 5.6.) ``c``, shape ``(B, 1)``, lies in ``[0, 1]``; towards 1 the Jacobian at the solution becomes
    singular.
    """

    c: Float[Tensor, "B 1"]

    @property
    def mean(self) -> Float[Tensor, " B"]:
        """The mean of the solution, exact on this grid: ``2 (1 - sqrt(1 - c)) / c``."""
        c = self.c.squeeze(1).double()
        return 2 * (1 - (1 - c).sqrt()) / c

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        size = z.shape[1]
        mu = (torch.arange(size, dtype=z.dtype, device=z.device) + 0.5) / size
        kernel = mu.unsqueeze(1) / (mu.unsqueeze(1) + mu)
        return 1 / (1 - self.c / (2 * size) * (kernel * z.unsqueeze(1)).sum(-1))


def affine_contraction(
    spectrum: Sequence[float], rows: int = 4, *, normal: bool = True, bound: float = 0.95, seed: int = 0
) -> Affine:
    """Make affine maps whose matrices have the given eigenvalues, with random starts, float64.

    Parameters
    ----------
    spectrum
        The ``D`` real eigenvalues, the same for every row; the eigenvectors differ from row to row.
    rows
        ``B``, the number of rows.
    normal
        Whether the matrices are symmetric. Otherwise they are triangular in a random basis, with a part above the
        diagonal as large as the 2-norm ``bound`` permits.
    bound
        Bound on the 2-norm of matrices that are not normal; at least the largest absolute value of ``spectrum``.
        Ignored if ``normal``.
    seed
        Seed of eigenvectors, offsets and starts.

    Returns
    -------
    Affine
        The problem, with its solution.
    """
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor(spectrum, dtype=torch.float64, device="cpu")
    size = len(values)
    basis = torch.linalg.qr(torch.randn(rows, size, size, generator=generator, dtype=torch.float64, device="cpu")).Q
    middle = torch.diag(values).expand(rows, -1, -1)
    if not normal:
        upper = torch.randn(rows, size, size, generator=generator, dtype=torch.float64, device="cpu").triu(1)
        room = bound - float(values.abs().max())
        norms = torch.linalg.matrix_norm(upper, 2).clamp(min=1e-300)
        middle = middle + room / norms.view(-1, 1, 1) * upper
    matrix = basis @ middle @ basis.mT
    offset = torch.randn(rows, size, generator=generator, dtype=torch.float64, device="cpu")
    solution = torch.linalg.solve(torch.eye(size, dtype=torch.float64, device="cpu") - matrix, offset)
    start = torch.randn(rows, size, generator=generator, dtype=torch.float64, device="cpu")
    return Affine(start, solution, matrix, offset)


def tanh_cell(size: int = 6, rows: int = 4, *, gain: float = 0.9, seed: int = 0) -> TanhCell:
    """Make tanh cells with a chosen solution, float64; the start is zero.

    Parameters
    ----------
    size
        ``D``, the number of unknowns.
    rows
        ``B``, the number of rows.
    gain
        2-norm of the weights; below 1 the map is a contraction.
    seed
        Seed of weights and solutions.

    Returns
    -------
    TanhCell
        The problem, with its solution.
    """
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(rows, size, size, generator=generator, dtype=torch.float64, device="cpu")
    weight = gain * raw / torch.linalg.matrix_norm(raw, 2).view(-1, 1, 1)
    solution = torch.empty(rows, size, dtype=torch.float64, device="cpu").uniform_(-0.8, 0.8, generator=generator)
    offset = torch.atanh(solution) - (weight * solution.unsqueeze(1)).sum(-1)
    return TanhCell(torch.zeros(rows, size, dtype=torch.float64, device="cpu"), solution, weight, offset)
