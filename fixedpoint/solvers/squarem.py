r"""SQUAREM and its alternating cyclic form: extrapolation in cycles, with the memory of a few states.

From the start ``x_0`` of a cycle, ``x_{j+1} = f(x_j)`` and the differences ``D1 = x_1 - x_0``,
``D2 = x_2 - 2 x_1 + x_0``, ``D3 = x_3 - 3 x_2 + 3 x_1 - x_0``:

    order 2    x' = x_0 + 2 sigma D1 + sigma^2 D2
    order 3    x' = x_0 + 3 sigma D1 + 3 sigma^2 D2 + sigma^3 D3

    squarem    order 2, sigma = ||D1|| / ||D2||, and a plain step after it
    cyclic     orders 3, 2, 3, 2, with sigma = |<D2, D3>| / ||D3||^2 in order 3
               and sigma = |<D1, D2>| / ||D2||^2 in order 2

(Varadhan & Roland 2008, "Simple and globally convergent methods for accelerating the convergence of any EM algorithm",
scheme S3, where ``sigma = -alpha``; Lepage-Saucier 2024, "Alternating cyclic vector extrapolation technique for
accelerating nonlinear optimization algorithms and fixed-point mapping applications".) ``sigma = 1`` is the plain
iterate.

Where we differ: ``sigma`` is at least 1 and at most a bound that grows fourfold when it was reached and did no harm,
as in the authors' package for S3; here in both schemes. An extrapolation that makes the residual more than ``growth``
times that of the cycle's start is undone: the row goes back to its last plain iterate, and its bound falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_norms, vecdot

__all__ = ["Squarem", "SquaremState"]

# How the bound on sigma grows and falls.
_FACTOR = 4.0


@dataclass(frozen=True)
class SquaremState:
    """Where each row stands in its cycle.

    Attributes
    ----------
    points
        ``x_0`` of the cycle, and ``x_1`` where cycles may be of order 3.
    safe
        The last plain iterate before an extrapolation.
    count
        Which point of the cycle the next evaluated one is; -1: the extrapolated point, whose plain step opens a cycle.
    order
        Of the cycle, 2 or 3.
    base
        Size of the residual at ``x_0``.
    bound, reached
        Largest ``sigma``, and whether the last one was cut to it.
    judged
        Whether the next evaluated point is an extrapolated one.
    """

    points: tuple[Float[Tensor, "B D"], ...]
    safe: Float[Tensor, "B D"]
    count: Int[Tensor, " B"]
    order: Int[Tensor, " B"]
    base: Float[Tensor, " B"]
    bound: Float[Tensor, " B"]
    reached: Bool[Tensor, " B"]
    judged: Bool[Tensor, " B"]


@dataclass(frozen=True)
class Squarem(StepSolver[SquaremState]):
    """Squared or cyclic extrapolation: light on memory, made for EM and other slow monotone maps."""

    scheme: Literal["cyclic", "squarem"] = option(
        "cyclic", help="cyclic: orders 3 and 2 in turn; squarem: order 2 with a plain step after it"
    )
    growth: float = option(2.0, ge=1.0, help="an extrapolation that makes the residual grow by more is undone")

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> SquaremState:
        cyclic = self.scheme == "cyclic"
        zeros = torch.zeros(at.z.shape[0], dtype=torch.int64, device=at.z.device)
        ones = torch.ones_like(zeros, dtype=torch.float64)
        return SquaremState(
            points=tuple(torch.zeros_like(at.z) for _ in range(2 if cyclic else 1)),
            safe=at.fz,
            count=zeros,
            order=zeros + (3 if cyclic else 2),
            base=torch.inf * ones,
            bound=_FACTOR * ones,
            reached=torch.zeros_like(at.finite),
            judged=torch.zeros_like(at.finite),
        )

    def reset(self, state: SquaremState, rows: Bool[Tensor, " B"]) -> SquaremState:
        """Rows put back to their best point open a new cycle there, with a smaller bound."""
        return replace(
            state,
            count=torch.where(rows, 0, state.count),
            judged=state.judged & ~rows,
            bound=torch.where(rows, _smaller(state.bound), state.bound),
        )

    def step(
        self, f: Evaluator, at: Evaluated, state: SquaremState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, SquaremState]:
        size = at.residual_norm
        worse = state.judged & (size > self.growth * state.base)
        helped = state.judged & state.reached & ~worse
        bound = torch.where(worse, _smaller(state.bound), torch.where(helped, _FACTOR * state.bound, state.bound))
        count = state.count
        points = tuple(torch.where((count == j).unsqueeze(1), at.z, point) for j, point in enumerate(state.points))
        completes = (count == state.order - 1) & ~worse
        extrapolated, wanted = _extrapolated(at, points, state.order, bound)
        proposal = torch.where(completes.unsqueeze(1), extrapolated, at.fz)
        proposal = torch.where(worse.unsqueeze(1), state.safe, proposal)
        after = 0 if self.scheme == "cyclic" else -1
        order = torch.where(completes, 5 - state.order, state.order) if self.scheme == "cyclic" else state.order
        return proposal, SquaremState(
            points=points,
            safe=torch.where(completes.unsqueeze(1), at.fz, state.safe),
            count=torch.where(worse, 0, torch.where(completes, after, count + 1)),
            order=order,
            base=torch.where((count == 0) & ~worse, size, state.base),
            bound=bound,
            reached=torch.where(completes, wanted >= bound, state.reached),
            judged=completes,
        )


def _smaller(bound: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    return (bound / _FACTOR).clamp(min=1.0)


def _extrapolated(
    at: Evaluated, points: tuple[Float[Tensor, "B D"], ...], order: Int[Tensor, " B"], bound: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, " B"]]:
    """``x'`` of every row as if its cycle were complete, and the ``sigma`` it wanted."""
    first = points[0]
    d1 = at.z - first
    d2 = at.residual - d1
    if len(points) == 1:  # S3
        wanted = _quotient(row_norms(d1), row_norms(d2))
        return _combined(first, (d1, d2), wanted, bound), wanted
    second = _projected(d1, d2)
    low = _combined(first, (d1, d2), second, bound)
    d1 = points[1] - first
    step = at.z - points[1]
    d2 = step - d1
    d3 = at.residual - step - d2
    third = _projected(d2, d3)
    high = _combined(first, (d1, d2, d3), third, bound)
    cubic = order == 3
    return torch.where(cubic.unsqueeze(1), high, low), torch.where(cubic, third, second)


def _projected(short: Float[Tensor, "B D"], long: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """``|<short, long>| / ||long||^2``, by way of a unit vector, so that small differences do not underflow."""
    size = row_norms(long)
    unit = long / torch.where(size > 0, size, 1.0).to(long.dtype).unsqueeze(1)
    return _quotient(vecdot(short, unit).abs(), size)


def _quotient(numerator: Float[Tensor, " B"], denominator: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """1 where it cannot be told: the plain iterate."""
    quotient = numerator / torch.where(denominator > 0, denominator, 1.0)
    return torch.where((denominator > 0) & quotient.isfinite(), quotient, 1.0)


def _combined(
    start: Float[Tensor, "B D"],
    differences: tuple[Float[Tensor, "B D"], ...],
    wanted: Float[Tensor, " B"],
    bound: Float[Tensor, " B"],
) -> Float[Tensor, "B D"]:
    """``x_0 + sum_j binomial(p, j) sigma^j D_j`` with ``sigma`` within 1 and the bound."""
    wide = torch.promote_types(start.dtype, torch.float32)  # sigma^3 may exceed half precision
    sigma = torch.minimum(wanted, bound).clamp(min=1.0).to(wide).unsqueeze(1)
    total, order = start.to(wide), len(differences)
    for j, difference in enumerate(differences, start=1):
        total = torch.addcmul(total, difference.to(wide), math.comb(order, j) * sigma**j)
    return total.to(start.dtype)
