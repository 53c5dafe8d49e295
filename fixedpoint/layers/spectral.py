r"""The spectral radius of a map's Jacobian: whether plain iteration converges there, and how fast.

Power iteration, which is what deep equilibrium codes use, tells the radius from how much one product lengthens its
vector, and does not converge where the largest eigenvalues are a complex pair, as those of a cell with any rotation
are. Here it is the largest eigenvalue of the small Hessenberg matrix that Arnoldi's process makes of the products

    J^T V_k = V_k H_k + h_{k+1,k} v_{k+1} e_k^T

(Saad 2011, "Numerical methods for large eigenvalue problems", section 6.2), complex or not, started anew from the real
part of its Ritz vector, which with its image spans what belongs to a complex pair. ``h_{k+1,k} |e_k^T y|`` says how far
it is from being an eigenvalue.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.layout import Rows
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.core.reduce import add_combination, row_norms
from fixedpoint.gradients.recorded import Map, products, watched
from fixedpoint.solvers.arnoldi import orthogonalised, unit

__all__ = ["SpectralRadius", "spectral_radius"]


class SpectralRadius(NamedTuple):
    """Of every row's Jacobian.

    Attributes
    ----------
    value
        Shape ``(B,)``, float64: the modulus of the largest eigenvalue that was found.
    residual
        Shape ``(B,)``, float64: ``||J^T y - lambda y||`` of its unit vector, over the largest entry of ``H_k``.
    products
        Vector-Jacobian products of every row.
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
    """The spectral radius of ``df/dz`` at ``z``, row by row.

    Parameters
    ----------
    f
        A map that autograd can go back through.
    z
        Where: a tensor, or a structure of tensors, as for ``fixedpoint.solve``.
    rows
        As for ``fixedpoint.solve``.
    rtol
        The residual at which a row is done.
    memory
        Products before the process starts anew.
    max_products
        At most so many.
    seed
        Of the vectors it begins with.
    """
    if not 0 <= rtol < 1:
        raise ValueError(f"rtol must be at least 0 and less than 1, got {rtol}")
    for name, given in (("memory", memory), ("max_products", max_products)):
        if given < 1:
            raise ValueError(f"{name} must be at least 1, got {given}")
    problem = FunctionProblem(f, z, rows)
    at, value = watched(problem, problem.initial())
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(at.shape, generator=generator, dtype=torch.float64).to(at)
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
    """The largest Ritz value's modulus, its residual, and the real part of its vector."""
    everyone = torch.ones(len(start), dtype=torch.bool, device=start.device)
    basis = start.new_zeros(len(start), memory + 1, start.shape[1])
    basis[:, 0] = unit(start, row_norms(start), everyone)
    hessenberg = torch.zeros(len(start), memory + 1, memory, dtype=torch.float64, device=start.device)
    for j in range(memory):
        image = product(basis[:, j].contiguous())
        vector, hessenberg[:, : j + 1, j], hessenberg[:, j + 1, j], _ = orthogonalised(basis[:, : j + 1], image)
        basis[:, j + 1] = unit(vector, hessenberg[:, j + 1, j], everyone)
    small = hessenberg.cpu()
    values, vectors = torch.linalg.eig(small[:, :memory])
    place = values.abs().argmax(dim=1)
    several = torch.arange(len(place))
    ritz, largest = vectors[several, :, place], values.abs()[several, place]
    size = small.abs().amax(dim=(1, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    residual = small[:, memory, memory - 1] * ritz[:, -1].abs() / size
    # Of a complex pair any combination of real and imaginary part will do; one of them may be nothing.
    real = torch.where((ritz.real.norm(dim=1) > 0.1).unsqueeze(1), ritz.real, ritz.imag).to(start.device)
    again = add_combination(torch.zeros_like(start), basis[:, :memory], real.unsqueeze(1))
    return largest.to(start.device), residual.to(start.device), again
