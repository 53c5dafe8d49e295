r"""Spectral radius of the Jacobian of a map, which says whether plain iteration converges there, and how fast.

Power iteration, which deep equilibrium codes use, estimates the radius by how much one product lengthens its vector. It
does not converge if the largest eigenvalues are a complex pair, as they are for a cell with any rotation. Here the
radius is the modulus of the largest eigenvalue of the small Hessenberg matrix that Arnoldi's process builds from the
products

    J^T V_k = V_k H_k + h_{k+1,k} v_{k+1} e_k^T

(Saad 2011, "Numerical methods for large eigenvalue problems", section 6.2), real or complex. The process restarts from
the real part of the Ritz vector of that eigenvalue, which together with its image spans the invariant subspace of a
complex pair. The residual ``h_{k+1,k} |e_k^T y|`` says how far the value is from being an eigenvalue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.layout import Rows
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.core.reduce import row_norms
from fixedpoint.gradients.recorded import Map, products, watched
from fixedpoint.solvers.arnoldi import Arnoldi, unit

__all__ = ["SpectralRadius", "spectral_radius"]


class SpectralRadius(NamedTuple):
    """The spectral radius of the Jacobian of every row.

    Attributes
    ----------
    value
        Shape ``(B,)``, float64: the modulus of the largest eigenvalue found.
    residual
        Shape ``(B,)``, float64: ``||J^T y - lambda y||`` of its unit vector, relative to the largest entry of ``H_k``.
    products
        Number of vector-Jacobian products, the same for every row.
    """

    value: Float[Tensor, " B"]
    residual: Float[Tensor, " B"]
    products: int


def spectral_radius(
    f: Callable[[Any], Any],
    z: Any,
    *,
    rows: Rows | None = None,
    rtol: float = 1e-3,
    memory: int = 30,
    max_products: int = 300,
    seed: int = 0,
) -> SpectralRadius:
    """Compute the spectral radius of ``df/dz`` at ``z``, for every row.

    Parameters
    ----------
    f
        A map that autograd can differentiate.
    z
        The point at which to take the Jacobian: a tensor or a structure of tensors, as for ``fixedpoint.solve``.
    rows
        ``"independent"`` or ``"joint"``, as for ``fixedpoint.solve``.
    rtol
        Largest residual at which a row is done, at least 0 and less than 1. The process stops when all rows are.
    memory
        Number of products after which the process restarts, at least 1.
    max_products
        Maximum number of products, at least 1.
    seed
        Seed of the random vectors from which the process begins.

    Raises
    ------
    ValueError
        If a number is out of range, or autograd does not see that ``f(z)`` depends on ``z``.
    TypeError, ValueError
        If ``z`` is not as described or not finite, or ``f`` returns another structure, shape or dtype.
    """
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol must be at least 0 and less than 1, got {rtol}")
    for name, given in (("memory", memory), ("max_products", max_products)):
        if given < 1:
            raise ValueError(f"{name} must be at least 1, got {given}")
    problem = FunctionProblem(f, z, rows)
    at, value = watched(problem, problem.initial())
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(at.shape, generator=generator, dtype=torch.float64, device="cpu").to(at)
    made, memory = 0, min(memory, at.shape[1])
    with torch.no_grad():
        while True:
            used = min(memory, max_products - made)
            largest, residual, start = _cycle(lambda v: products(value, at, v), start, used)
            made += used
            if made >= max_products or bool((residual <= rtol).all()):
                return SpectralRadius(largest, residual, made)


def _cycle(
    product: Map, start: Float[Tensor, "B D"], memory: int
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, "B D"]]:
    """One Arnoldi cycle: the modulus of the largest Ritz value, its residual, and the vector to restart from."""
    everyone = torch.ones(len(start), dtype=torch.bool, device=start.device)
    arnoldi = Arnoldi(unit(start, row_norms(start), everyone), memory + 1)
    hessenberg = np.zeros((memory + 1, memory, len(start)))
    for j in range(memory):
        column, _ = arnoldi.components(product(arnoldi.vector))
        hessenberg[: j + 1, j], hessenberg[j + 1, j] = column.along, column.remainder
        arnoldi.append(column.remainder)
    small = torch.from_numpy(np.moveaxis(hessenberg, 2, 0).copy())
    values, vectors = torch.linalg.eig(small[:, :memory])
    place = values.abs().argmax(dim=1)
    several = torch.arange(len(place), device="cpu")
    ritz, largest = vectors[several, :, place], values.abs()[several, place]
    # The largest entry can only be zero for J = 0; the residual is zero then.
    size = small.abs().amax(dim=(1, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    residual = small[:, memory, memory - 1] * ritz[:, -1].abs() / size
    # For a complex pair any combination of the real and the imaginary part will do, but one of them may be nearly zero.
    real = torch.where((ritz.real.norm(dim=1) > 0.1).unsqueeze(1), ritz.real, ritz.imag)
    again = arnoldi.combination(np.ascontiguousarray(real.numpy().T))
    return largest.to(start.device), residual.to(start.device), again
