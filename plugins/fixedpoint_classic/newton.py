r"""Newton's method on ``f(z) - z = 0``, which computes reference solutions.

    z_{k+1} = z_k + t (I - J(z_k))^{-1} (f(z_k) - z_k)

where ``t`` is halved until the residual decreases (Dennis & Schnabel 1983, "Numerical methods for unconstrained
optimization and nonlinear equations", section 6.3), for every row, until rounding prevents further progress. The
Jacobian is dense.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.reduce import row_norms
from fixedpoint_classic.problem import ClassicProblem

__all__ = ["newton", "picard"]

_HALVINGS = 30


def newton(problem: ClassicProblem, z: Float[Tensor, "B D"], rounds: int = 100) -> Float[Tensor, "B D"]:
    """The point with the smallest residual that Newton's method finds from ``z``, for every row."""
    residual = problem(z) - z
    size = row_norms(residual)
    identity = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    for _ in range(rounds):
        # ``solve_ex`` does not raise if the matrix of a row is singular; a step counts only if it reduces the residual.
        step = torch.linalg.solve_ex(identity - problem.jacobian(z), residual)[0]
        fraction = torch.ones_like(size)
        better = torch.zeros_like(size, dtype=torch.bool)
        for _ in range(_HALVINGS):
            # Rows that have improved wait for the others.
            trial = z + torch.where(better, 0.0, fraction).unsqueeze(1).to(z) * step
            moved = problem(trial) - trial
            improved = ~better & (row_norms(moved) < size)  # false for NaN
            z = torch.where(improved.unsqueeze(1), trial, z)
            residual = torch.where(improved.unsqueeze(1), moved, residual)
            size = torch.where(improved, row_norms(moved), size)
            better |= improved
            fraction = fraction / 2
            if bool(better.all()):
                break
        if not bool(better.any()):
            break
    return z


def picard(problem: ClassicProblem, rounds: int) -> Float[Tensor, "B D"]:
    """The state after ``rounds`` plain iterations, from which Newton's method converges to the intended solution."""
    z = problem.initial()
    for _ in range(rounds):
        z = problem(z)
    return z
