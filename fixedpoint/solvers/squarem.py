r"""SQUAREM and alternating cyclic extrapolation: each cycle extrapolates from a few plain iterates.

From the first point ``x_0`` of a cycle, with ``x_{j+1} = f(x_j)`` and the differences ``D1 = x_1 - x_0``,
``D2 = x_2 - 2 x_1 + x_0``, ``D3 = x_3 - 3 x_2 + 3 x_1 - x_0``:

    order 2    x' = x_0 + 2 sigma D1 + sigma^2 D2
    order 3    x' = x_0 + 3 sigma D1 + 3 sigma^2 D2 + sigma^3 D3

    squarem    order 2, sigma = ||D1|| / ||D2||, followed by a plain step
    cyclic     orders 3, 2, 3, 2, with sigma = |<D2, D3>| / ||D3||^2 in order 3
               and sigma = |<D1, D2>| / ||D2||^2 in order 2

(Varadhan & Roland 2008, "Simple and globally convergent methods for accelerating the convergence of any EM algorithm",
scheme S3, where ``sigma = -alpha``; Lepage-Saucier 2024, "Alternating cyclic vector extrapolation technique for
accelerating nonlinear optimization algorithms and fixed-point mapping applications".) ``sigma = 1`` is the plain
iterate.

Where we differ: ``sigma`` is at least 1, as in the authors' package for S3, until it was to be shorter twice in a row.
Then the map is no monotone one, and ``sigma`` is at least 1/2, which is all that a contraction requires: the best
``sigma`` for the eigenvalue ``lambda`` of its derivative is ``1 / (1 - lambda)``. ``sigma`` is at most a bound, which
grows fourfold when it was reached and the extrapolation did no harm. An extrapolation is undone when its residual is
more than ``growth`` times that at the start of the cycle: the row goes back to its last plain iterate, and its bound is
divided by four. A small ``growth``, such as 2, undoes extrapolations that pay: on a mixture of Poisson distributions it
takes several times the authors' counts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_norms, vecdot
from fixedpoint.core.small import where
from fixedpoint.core.transfer import to_host
from fixedpoint.solvers.row_numbers import as_tensor, norm_of

__all__ = ["Squarem", "SquaremState"]

# Factor by which the bound on sigma grows and shrinks.
_FACTOR = 4.0
# The least sigma of a map whose derivative has negative eigenvalues: 1 / (1 - lambda) is above it while lambda > -1.
_LEAST = 0.5


@dataclass(frozen=True)
class SquaremState:
    """The position of every row in its cycle, and the points the cycle needs.

    Numbers of rows are arrays on a CPU, and tensors elsewhere and while autograd records.

    Attributes
    ----------
    points
        Shape ``(B, D)`` each: ``x_0`` of the cycle, and ``x_1`` where cycles may be of order 3.
    safe
        Shape ``(B, D)``: the last plain iterate before an extrapolation.
    count
        Shape ``(B,)``, int64: index in the cycle of the point that is evaluated next; -1 for an extrapolated point from
        which a plain step is taken before the next cycle begins.
    order
        Shape ``(B,)``, int64: order of the cycle, 2 or 3.
    base
        Shape ``(B,)``, float64: norm of the residual at ``x_0``.
    bound
        Shape ``(B,)``, float64: largest ``sigma`` allowed, at least 1.
    reached
        Shape ``(B,)``: whether the last ``sigma`` was limited by the bound.
    short
        Shape ``(B,)``: whether the last ``sigma`` was below 1 before it was limited.
    shortens
        Shape ``(B,)``: whether ``sigma`` may be below 1.
    judged
        Shape ``(B,)``: whether the point that is evaluated next is an extrapolated one.
    """

    points: tuple[Float[Tensor, "B D"], ...]
    safe: Float[Tensor, "B D"]
    count: Any
    order: Any
    base: Any
    bound: Any
    reached: Any
    short: Any
    shortens: Any
    judged: Any


@dataclass(frozen=True)
class Squarem(StepSolver[SquaremState]):
    """Squared or cyclic extrapolation: needs little memory; made for EM and other slow monotone maps."""

    scheme: Literal["cyclic", "squarem"] = option(
        "cyclic", help="cyclic: orders 3 and 2 in turn; squarem: order 2 with a plain step after it"
    )
    growth: float = option(1e4, ge=1.0, help="an extrapolation that makes the residual grow by more is undone")

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> SquaremState:
        cyclic, rows = self.scheme == "cyclic", at.z.shape[0]
        zeros: Any = np.zeros(rows, dtype=np.int64)
        if not (at.z.device.type == "cpu" and f.has_numbers):
            zeros = torch.zeros(rows, dtype=torch.int64, device=at.z.device)
        ones, none = zeros + 1.0, zeros > 0
        return SquaremState(
            points=tuple(torch.zeros_like(at.z) for _ in range(2 if cyclic else 1)),
            safe=at.fz,
            count=zeros,
            order=zeros + (3 if cyclic else 2),
            base=math.inf * ones,
            bound=_FACTOR * ones,
            reached=none,
            short=none,
            shortens=none,
            judged=none,
        )

    def reset(self, state: SquaremState, rows: Any) -> SquaremState:
        """Begin a new cycle, with a smaller bound, in rows that were put back to their best point."""
        if isinstance(state.count, np.ndarray) and isinstance(rows, Tensor):
            rows = rows.cpu().numpy()
        return replace(
            state,
            count=where(rows, 0, state.count),
            judged=state.judged & ~rows,
            bound=where(rows, _smaller(state.bound), state.bound),
        )

    @np.errstate(all="ignore")
    def step(
        self, f: Evaluator, at: Evaluated, state: SquaremState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, SquaremState]:
        on_host = not isinstance(state.count, Tensor)
        size = norm_of(at, on_host)
        worse = state.judged & (size > self.growth * state.base)
        helped = state.judged & state.reached & ~worse
        bound = where(worse, _smaller(state.bound), where(helped, _FACTOR * state.bound, state.bound))
        count, order = state.count, state.order
        points = tuple(_chosen(count == j, at.z, point) for j, point in enumerate(state.points))
        completes = (count == order - 1) & ~worse
        short, shortens, reached, proposal = state.short, state.shortens, state.reached, at.fz
        if not on_host or completes.any():
            found, combined = _extrapolation(at, points, order)
            wanted: Any = to_host(found)[0] if on_host else found
            short = where(completes, wanted < 1.0, short)
            shortens = shortens | (completes & short & state.short)
            sigma, least = where(wanted < bound, wanted, bound), where(shortens, _LEAST, 1.0)
            proposal = _chosen(completes, combined(as_tensor(where(sigma < least, least, sigma), at.z)), at.fz)
            reached = where(completes, wanted >= bound, reached)
        after = 0 if self.scheme == "cyclic" else -1
        # 5 - order turns 2 into 3 and 3 into 2.
        following = where(completes, 5 - order, order) if self.scheme == "cyclic" else order
        return _chosen(worse, state.safe, proposal), SquaremState(
            points=points,
            safe=_chosen(completes, at.fz, state.safe),
            count=where(worse, 0, where(completes, after, count + 1)),
            order=following,
            base=where((count == 0) & ~worse, size, state.base),
            bound=bound,
            reached=reached,
            short=short,
            shortens=shortens,
            judged=completes,
        )


def _smaller(bound: Any) -> Any:
    smaller = bound / _FACTOR
    return where(smaller < 1.0, 1.0, smaller)


def _chosen(rows: Any, one: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Return ``one`` in some rows and ``other`` elsewhere: itself, where the host knows that it is all or none."""
    if isinstance(rows, np.ndarray):
        if not rows.any():
            return other
        if rows.all():
            return one
    return torch.where(as_tensor(rows, one).unsqueeze(1), one, other)


def _extrapolation(
    at: Evaluated, points: tuple[Float[Tensor, "B D"], ...], order: Any
) -> tuple[Float[Tensor, " B"], Callable[[Float[Tensor, " B"]], Float[Tensor, "B D"]]]:
    """Return the ``sigma`` that is wanted, and what returns ``x'`` for any, as if every row's cycle were complete."""
    first = points[0]
    d1 = at.z - first
    d2 = at.residual - d1
    if len(points) == 1:  # S3
        return _quotient(row_norms(d1), row_norms(d2)), functools.partial(_combined, first, (d1, d2))
    known = isinstance(order, np.ndarray)
    if known and (order == 2).all():
        return _projected(d1, d2), functools.partial(_combined, first, (d1, d2))
    one = points[1] - first
    step = at.z - points[1]
    two = step - one
    three = at.residual - step - two
    third, high = _projected(two, three), functools.partial(_combined, first, (one, two, three))
    if known and (order == 3).all():
        return third, high
    cubic = as_tensor(order == 3, first)

    def combined(sigma: Float[Tensor, " B"]) -> Float[Tensor, "B D"]:
        return torch.where(cubic.unsqueeze(1), high(sigma), _combined(first, (d1, d2), sigma))

    return torch.where(cubic, third, _projected(d1, d2)), combined


def _projected(short: Float[Tensor, "B D"], long: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """``|<short, long>| / ||long||^2``, computed with a unit vector so that small differences do not underflow."""
    size = row_norms(long)
    unit = long / torch.where(size > 0, size, 1.0).to(long.dtype).unsqueeze(1)
    return _quotient(vecdot(short, unit).abs(), size)


def _quotient(numerator: Float[Tensor, " B"], denominator: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The quotient; 1, which gives the plain iterate, where it is not defined."""
    quotient = numerator / torch.where(denominator > 0, denominator, 1.0)
    return torch.where((denominator > 0) & quotient.isfinite(), quotient, 1.0)


def _combined(
    start: Float[Tensor, "B D"], differences: tuple[Float[Tensor, "B D"], ...], sigma: Float[Tensor, " B"]
) -> Float[Tensor, "B D"]:
    """``x_0 + sum_j binomial(p, j) sigma^j D_j``."""
    wide = torch.promote_types(start.dtype, torch.float32)  # sigma^3 may exceed half precision
    factor = sigma.to(wide).unsqueeze(1)
    total, order = start.to(wide), len(differences)
    for j, difference in enumerate(differences, start=1):
        total = torch.addcmul(total, difference.to(wide), math.comb(order, j) * factor**j)
    return total.to(start.dtype)
