r"""Jacobian regularisation: a penalty that keeps a cell contractive while it is trained.

    ||J||_F^2 / D,  estimated by  |J^T v|^2 / D  with  E v v^T = I

at the fixed point (Bai, Koltun & Kolter 2021, "Stabilizing equilibrium models by Jacobian regularization", equation 5;
Hutchinson 1990). The fixed point itself is taken for a constant, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.layout import Rows
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.gradients.recorded import watched

__all__ = ["jacobian_penalty"]


def jacobian_penalty(
    f: Callable[[Any], Any],
    z: Any,
    *,
    rows: Rows | None = None,
    vectors: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """An unbiased estimate of ``||df/dz||_F^2 / D``, the mean over the rows; differentiable by what ``f`` depends on.

    One evaluation and ``vectors`` vector-Jacobian products, which a backward pass goes through.

    Parameters
    ----------
    f
        The map; of a layer, ``layer.solve(x).f``.
    z
        Where: a tensor, or a structure of tensors, as for ``fixedpoint.solve``.
    rows
        As for ``fixedpoint.solve``.
    vectors
        Random vectors that are averaged over.
    generator
        Of the random vectors, on the CPU.
    """
    if vectors < 1:
        raise ValueError(f"vectors must be at least 1, got {vectors}")
    problem = FunctionProblem(f, z, rows)
    at, value = watched(problem, problem.initial())
    with torch.enable_grad():
        total = value.new_zeros(())
        for _ in range(vectors):
            signs = torch.randint(0, 2, value.shape, generator=generator) * 2 - 1
            (product,) = torch.autograd.grad(
                value, at, signs.to(value), create_graph=True, allow_unused=True, materialize_grads=True
            )
            total = total + product.square().sum()
    return total / (vectors * value.numel())
