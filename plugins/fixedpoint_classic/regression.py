r"""Random least-squares problems for NNLS and the elastic net, and their exact solution by active sets.

Both minimise ``x^T Q x / 2 - c^T x`` plus one nonsmooth term for each unknown. The proximal gradient step
``u = x - t (Q x - c)`` shows which unknowns are not at the kink of their term. Given these unknowns and their signs, a
linear system determines their values. A choice of signs that reproduces itself gives the solution. This is the
primal-dual active set method, a semismooth Newton method (Hintermueller, Ito & Kunisch 2002, "The primal-dual active
set strategy as a semismooth Newton method").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint_classic.problem import ClassicProblem

__all__ = ["draw_regression", "solve_active_sets"]


def draw_regression(
    generator: torch.Generator, samples: int, size: int, correlation: float, truth: Float[Tensor, " n"], noise: float
) -> tuple[Float[Tensor, "1 n n"], Float[Tensor, "1 n"], Float[Tensor, "1 1"]]:
    """``Q = A^T A / m``, ``c = A^T b / m`` with ``b = A truth + noise``, and the largest eigenvalue of ``Q``.

    Columns ``i`` and ``j`` of ``A`` are correlated by ``correlation^|i - j|``.
    """
    drawn = torch.randn(samples, size, generator=generator, dtype=torch.float64, device="cpu")
    columns = [drawn[:, 0]]
    for j in range(1, size):
        columns.append(correlation * columns[-1] + (1 - correlation**2) ** 0.5 * drawn[:, j])
    design = torch.stack(columns, dim=1)
    target = design @ truth + noise * torch.randn(samples, generator=generator, dtype=torch.float64, device="cpu")
    gram = design.T @ design / samples
    largest = torch.linalg.eigvalsh(gram)[-1]
    return gram.unsqueeze(0), (design.T @ target / samples).unsqueeze(0), largest.view(1, 1)


def solve_active_sets(
    problem: ClassicProblem,
    given_signs: Callable[[Float[Tensor, "B n"]], Float[Tensor, "B n"]],
    signs: Callable[[Float[Tensor, "B n"]], Float[Tensor, "B n"]],
) -> Float[Tensor, "B n"]:
    """The solution, by the active set that reproduces itself.

    If the active sets enter a cycle, the method starts again after more plain iterations.

    Parameters
    ----------
    problem
        The problem, whose map gives the plain iterations.
    given_signs
        A function that returns the minimiser for given signs. The result is arbitrary if it is not unique.
    signs
        A function that returns the signs of the unknowns at a point, and 0 for unknowns at their kink.

    Raises
    ------
    RuntimeError
        If no active set reproduces itself.
    """
    z = problem.initial()
    for _ in range(200):
        for _ in range(100):
            z = problem(z)
        x, chosen = z, signs(z)
        for _ in range(30):
            x = given_signs(chosen)
            found = signs(x)
            if torch.equal(found, chosen):
                return x
            chosen = found
    raise RuntimeError("no active set reproduces itself")
