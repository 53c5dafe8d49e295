"""The bench for gradient estimators: the problems they are checked on, and how to differentiate the solutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.api import solve
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.picard import Picard
from fixedpoint.testing.bench import UnsoundError
from fixedpoint.testing.problems import Affine, TanhCell, affine_contraction, tanh_cell

__all__ = ["GradientBench", "relative"]

_SPECTRUM = (0.7, 0.5, 0.2, -0.1, -0.3, -0.5)


class GradientBench:
    """Affine maps and tanh cells whose coefficients are differentiated.

    Parameters
    ----------
    estimator
        The gradient estimator that is checked.
    solver
        Finds the solutions; default: Anderson acceleration with memory 2, which provides all that the library's
        estimators require.
    """

    has_equation = True
    """Whether the estimator reports the error of the adjoint equation of the fixed point."""

    def __init__(self, estimator: GradientEstimator, solver: Solver | None = None) -> None:
        self.estimator = estimator
        self.solver: Solver = solver or Anderson(memory=2)

    @property
    def others(self) -> tuple[Solver, ...]:
        """Other solvers that provide what the estimator requires."""
        candidates: tuple[Solver, ...] = (Picard(), Anderson(memory=5))
        return tuple(solver for solver in candidates if self.estimator.needs <= solver.provides)

    def affine(self) -> Affine:
        """Return affine maps with matrices that are not normal, four rows."""
        return affine_contraction(_SPECTRUM, normal=False, bound=0.8, seed=21)

    def cell(self) -> TanhCell:
        """Return tanh cells, four rows."""
        return tanh_cell(gain=0.8, seed=22)

    def cotangent(self, problem: Affine | TanhCell, seed: int = 23) -> Float[Tensor, "B D"]:
        """Return a random cotangent for the solutions of a problem, shape ``(B, D)``."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(problem.start.shape, generator=generator, dtype=torch.float64, device="cpu").to(
            problem.start
        )

    def solve(
        self,
        f: Callable[[Any], Any],
        start: Any,
        solver: Solver | None = None,
        rtol: float | None = None,
        *,
        gradient: bool = True,
    ) -> Solution:
        """Solve with the estimator's gradient; the default tolerance is :meth:`tight`."""
        return solve(
            f,
            start,
            solver=solver or self.solver,
            gradient=self.estimator if gradient else None,
            rows="independent",
            rtol=self.tight(start) if rtol is None else rtol,
            max_rounds=300,
        )

    def tight(self, start: Any) -> float:
        """Return a relative tolerance close to rounding for the dtype of ``start``."""
        return 1e-13 if _dtype(start) == torch.float64 else 1e-6

    def solution(
        self, problem: Affine | TanhCell, solver: Solver | None = None
    ) -> tuple[Solution, Float[Tensor, "B D D"], Float[Tensor, "B D"]]:
        """Solve a problem; return the solution, and the matrix and offset that it can be differentiated by."""
        matrix, offset = _coefficients(problem)
        matrix, offset = matrix.clone().requires_grad_(), offset.clone().requires_grad_()
        return self.solve(mapped(problem, matrix, offset), problem.start, solver), matrix, offset

    def gradient(
        self, problem: Affine | TanhCell, cotangent: Float[Tensor, "B D"], solver: Solver | None = None
    ) -> tuple[Tensor, ...]:
        """Return the gradients by the matrix and by the offset that the estimator gives."""
        solution, *coefficients = self.solution(problem, solver)
        return torch.autograd.grad(solution.state, coefficients, cotangent)


def mapped(problem: Affine | TanhCell, matrix: Tensor, offset: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the map of a problem, with its coefficients replaced by ``matrix`` and ``offset``."""

    def f(z: Tensor) -> Tensor:
        value = (matrix * z.unsqueeze(1)).sum(-1) + offset
        return value if isinstance(problem, Affine) else torch.tanh(value)

    return f


def relative(found: Tensor, exact: Tensor) -> float:
    """Return the relative difference of two tensors in the Euclidean norm of all their entries.

    Raises
    ------
    UnsoundError
        When ``found`` is not finite, or its shape differs from that of ``exact``.
    """
    if found.shape != exact.shape:
        raise UnsoundError(f"a gradient has shape {tuple(found.shape)}, not {tuple(exact.shape)}")
    if not bool(found.isfinite().all()):
        raise UnsoundError("a gradient is not finite")
    size = float(exact.double().norm())
    gap = float((found.double() - exact.double()).norm()) / (size or 1.0)
    return gap if gap == gap else float("inf")  # ``max`` of several gaps can lose a NaN


def _coefficients(problem: Affine | TanhCell) -> tuple[Tensor, Tensor]:
    return (problem.matrix if isinstance(problem, Affine) else problem.weight), problem.offset


def _dtype(start: Any) -> torch.dtype:
    dtype: torch.dtype = start.dtype if isinstance(start, Tensor) else start[0].dtype
    return dtype
