r"""The gradient by a Neumann series with an extrapolated tail.

With ``J = df/dz`` at the fixed point and the cotangent ``g``, the implicit gradient requires ``u = (I - J^T)^{-1} g``,
the sum of the terms ``t_i = (J^T)^i g``. Late terms are multiples of one vector, the dominant eigenvector. The rest of
the series is then geometric and can be estimated from the last two terms:

    u = sum_{i <= k} t_i + mu / (1 - mu) t_k,      mu = (t_{k-1} . t_k) / (t_{k-1} . t_{k-1})

(Lyusternik 1947; Faddeev & Faddeeva 1963, "Computational methods of linear algebra", on speeding up the
convergence of iterations.) If ``|mu|`` is 0.95 or more, the tail is left out, since it is not geometric yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint import GradientEstimator, Solution
from fixedpoint.plugin import Evaluator, option, products, recorded, vecdot, with_gradient_of

__all__ = ["Lyusternik"]


@dataclass(frozen=True)
class Lyusternik(GradientEstimator):
    """A Neumann series of vector-Jacobian products, with an extrapolated tail."""

    products: int = option(5, ge=1, help="k: number of vector-Jacobian products")

    @property
    def known_faults(self) -> dict[str, str]:
        return dict.fromkeys(("closed-form", "differences"), "the tail of the series is a guess")

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        value = solution.state.detach()
        z, fz = recorded(f.value, value)

        def summed(cotangent: Tensor) -> Tensor:
            total = term = before = cotangent
            for _ in range(self.products):
                before, term = term, products(fz, z, term)
                total = total + term
            return total + _tail(before, term).to(term.dtype).unsqueeze(1) * term

        return with_gradient_of(value, fz, summed)


def _tail(before: Float[Tensor, "B D"], term: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """``mu / (1 - mu)`` for every row; zero if ``|mu|`` is too large or the term before the last is zero."""
    length, along = (vecdot(before, other) for other in (before, term))
    mu = torch.where(length > 0, along / torch.where(length > 0, length, 1.0), 0.0)
    mu = torch.where(mu.abs() < 0.95, mu, 0.0)
    return mu / (1 - mu)
