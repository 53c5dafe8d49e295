r"""Jacobian regularisation: a penalty that keeps a cell contractive during training.

    ||J||_F^2 / D,  estimated by  |J^T v|^2 / D  with  E v v^T = I

at the fixed point (Bai, Koltun & Kolter 2021, "Stabilizing equilibrium models by Jacobian regularization", equation 5;
Hutchinson 1990). As in that paper, the fixed point itself is treated as a constant.
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
    """An unbiased estimate of ``||df/dz||_F^2 / D``, averaged over the rows.

    It is differentiable by the tensors that ``f`` depends on. It costs one evaluation and ``vectors`` vector-Jacobian
    products, all of which are recorded for the backward pass.

    Parameters
    ----------
    f
        The map; for a layer, ``layer.solve(x).f``.
    z
        The point at which to take the Jacobian: a tensor or a structure of tensors, as for ``fixedpoint.solve``.
    rows
        ``"independent"`` or ``"joint"``, as for ``fixedpoint.solve``.
    vectors
        Number of random vectors to average over, at least 1.
    generator
        CPU generator of the random vectors; by default that of torch.

    Returns
    -------
    Tensor
        A scalar of the dtype of the state, at least 0.

    Raises
    ------
    ValueError
        If ``vectors`` is less than 1, or autograd does not see that ``f(z)`` depends on ``z``.
    TypeError, ValueError
        If ``z`` is not as described or not finite, or ``f`` returns another structure, shape or dtype.
    """
    if vectors < 1:
        raise ValueError(f"vectors must be at least 1, got {vectors}")
    problem = FunctionProblem(f, z, rows)
    at, value = watched(problem, problem.initial())
    with torch.enable_grad():
        total = value.new_zeros(())
        for _ in range(vectors):
            # Entries of +1 and -1 satisfy E v v^T = I.
            signs = torch.randint(0, 2, value.shape, generator=generator, device="cpu") * 2 - 1
            (product,) = torch.autograd.grad(
                value, at, signs.to(value), create_graph=True, allow_unused=True, materialize_grads=True
            )
            total = total + product.square().sum()
    return total / (vectors * value.numel())
