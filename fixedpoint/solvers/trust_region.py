r"""Levenberg and Marquardt's method: Newton's steps within a trust region that holds the residual down.

At ``z_k`` with ``r_k = f(z_k) - z_k`` and its Jacobian ``B_k``, the step minimises the linear model within a radius:

    s_k = argmin ||r_k + B_k s||   where   ||D_k s|| <= Delta_k
    (B^T B + mu D^2) s_k = -B^T r_k

with ``mu = 0`` where Newton's step is short enough. (Moré 1978, "The Levenberg-Marquardt algorithm: implementation and
theory", eqs. 3.1 to 3.4, and 6.1 to 6.3 for the scales ``D``: each the largest norm of its column of ``B`` so far.)
``mu`` is found by Newton's method on ``||D s|| - Delta`` (Moré, section 5; Hebden 1973), with the singular values of
``B D^{-1}``, which also give the step where ``B`` is singular. The step is judged by

    rho = (||r_k||^2 - ||r(z_k + s_k)||^2) / (||r_k||^2 - ||r_k + B_k s_k||^2)

accepted where ``rho > 1e-4``; the radius is halved below ``rho = 0.1``, and becomes ``2 ||D s_k||`` above 0.75 or where
``mu = 0``. A row ends at a minimum of ``||r||``, where every column of ``B`` is orthogonal to ``r`` to 1e-8, or where
the radius is lost in rounding. Where we differ: a step after which less than ``slow`` of the residual is left updates
the Jacobian by Broyden's formula, as Powell's hybrid method does (Powell 1970, "A hybrid method for nonlinear
equations"). A rejected step with such a Jacobian computes it anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_dots, row_norms
from fixedpoint.solvers.linearised import Factors, Linearised, Products, probe, refuse_recording

__all__ = ["TrustRegion", "TrustRegionState"]

_ACCEPTED, _POOR, _GOOD = 1e-4, 0.1, 0.75
# Newton's iterations for mu. The radius is met to a tenth, usually after two or three.
_ITERATIONS, _EXACTNESS = 30, 0.1
_ORTHOGONAL = 1e-8


@dataclass(frozen=True)
class TrustRegionState:
    """The Jacobian, the scales, the radius (NaN before the first step), and the rows without a further step."""

    linear: Linearised
    scale: Float[Tensor, "B D"]
    radius: Float[Tensor, " B"]
    over: Bool[Tensor, " B"]


@dataclass(frozen=True)
class TrustRegion(StepSolver[TrustRegionState]):
    """The method of Levenberg and Marquardt as a trust region, with the Jacobian matrix of every row."""

    radius: float = option(1.0, gt=0.0, help="radius of the first region, relative to the scaled size of the start")
    slow: float = option(
        0.1, ge=0.0, lt=1.0, help="ratio of successive residuals above which the Jacobian is computed anew, not updated"
    )
    jacobian: Products = option(
        "auto", help="Jacobians in forward mode, by differences, or (auto) by differences where forward mode fails"
    )

    provides = frozenset()  # no "decisions": autograd cannot go through the Jacobians

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> TrustRegionState:
        unknown = torch.full_like(row_norms(at.z), torch.nan)
        return TrustRegionState(Linearised.begin(at), torch.zeros_like(at.z, dtype=torch.float64), unknown, unknown > 0)

    def reset(self, state: TrustRegionState, rows: Bool[Tensor, " B"]) -> TrustRegionState:
        linear = replace(state.linear, stale=state.linear.stale | rows)
        return replace(state, linear=linear, radius=torch.where(rows, 0.1 * state.radius, state.radius))

    def exhausted(self, state: TrustRegionState) -> Bool[Tensor, " B"]:
        return state.over

    def step(
        self, f: Evaluator, at: Evaluated, state: TrustRegionState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, TrustRegionState]:
        refuse_recording("TrustRegion")
        linear = state.linear.renewed(f, at, self.jacobian)
        if linear is None:
            return at.fz, state  # no round is left for a Jacobian: a plain step
        sizes = linear.sizes
        scale = torch.maximum(state.scale, sizes)
        safe = torch.where(scale > 0, scale, 1.0)
        residual = at.residual.double().nan_to_num()  # a start that is not finite ends here, whatever it is
        size, reach = row_norms(residual), row_norms(at.z.double() * safe)
        first = self.radius * torch.where(reach > 0, reach, size)
        radius = torch.where(state.radius.isnan(), first, state.radius)
        factors = Factors.of(linear.matrix, safe, torch.finfo(at.z.dtype).eps)
        step, newton = _within(factors, residual, radius)
        length = row_norms(step * safe)
        one = torch.where(size > 0, size, 1.0)
        expected = 1.0 - (row_norms(residual + row_dots(linear.matrix, step)) / one).square()
        step, probing = probe(at, step)
        new = f((at.z.double() + step).to(at.z.dtype))
        value = torch.where(new.finite.unsqueeze(1), new.residual.double(), residual)
        left = torch.where(new.finite, row_norms(value) / one, torch.inf)
        ratio = torch.where(expected > 0, (1.0 - left.square()) / torch.where(expected > 0, expected, 1.0), -1.0)
        accepted = new.finite & (probing | (ratio > _ACCEPTED))
        quick = accepted & (left <= self.slow) & ~probing
        cut = torch.minimum(radius, length) * torch.where(left > 3.0, 0.1, 0.5)
        grown = torch.where((ratio > _GOOD) | newton, torch.maximum(radius, 2.0 * length), radius)
        again = ~accepted & ~linear.fresh  # rejected with a Jacobian of an earlier point
        following = torch.where(probing, radius, torch.where(ratio < _POOR, cut, grown))
        # At a minimum of the residual each column is orthogonal to it.
        across = row_dots(linear.matrix.mT.contiguous(), residual).abs() / torch.where(sizes > 0, sizes, 1.0)
        flat = (across <= _ORTHOGONAL * size.unsqueeze(1)).all(dim=1)
        lost = following <= 4 * torch.finfo(at.z.dtype).eps * reach
        rejected = ~accepted & linear.fresh
        linear = linear.updated(quick, step, value - residual)
        linear = Linearised(linear.matrix, (accepted & ~quick) | again, linear.fresh & ~accepted)
        ended = rejected & (flat | lost)
        state = TrustRegionState(linear, scale, torch.where(again, radius, following), ended & new.finite)
        # A row that ends where f is not finite is shown to the loop as such.
        return new.where(accepted | (ended & ~new.finite), at), state


def _within(
    factors: Factors, residual: Float[Tensor, "B D"], radius: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B D"], Bool[Tensor, " B"]]:
    """Return the step of every row, and the rows whose step is Newton's.

    With ``c = U^T r`` and the singular values ``S``, the weights of the right singular vectors are
    ``S c / (S^2 + mu)``. ``mu`` is kept between bounds that enclose it (Moré, section 5).
    """
    along, values = factors.along(residual), torch.where(factors.kept, factors.values, 0.0)
    weights = torch.where(factors.kept, along / torch.where(factors.kept, values, 1.0), 0.0)
    newton = row_norms(weights) <= (1.0 + _EXACTNESS) * radius
    wanted = torch.where(radius > 0, radius, 1.0)
    high = row_norms(values * along) / wanted
    low = torch.zeros_like(high)
    mu = 1e-3 * high
    for _ in range(_ITERATIONS):
        below = values.square() + mu.unsqueeze(1)
        trial = torch.where(below > 0, values * along / torch.where(below > 0, below, 1.0), 0.0)
        length = row_norms(trial)
        done = (length - wanted).abs() <= _EXACTNESS * wanted
        low, high = torch.where(length > wanted, mu, low), torch.where(length > wanted, high, mu)
        weighed = row_norms(trial / torch.where(below > 0, below, 1.0).sqrt()).square()
        safe = torch.where(weighed > 0, weighed, 1.0)
        following = mu + (length / wanted) * (length - wanted) * length / safe
        inside = (following > low) & (following < high)
        following = torch.where(inside, following, torch.maximum(1e-3 * high, (low * high).sqrt()))
        mu = torch.where(done, mu, following)
    below = values.square() + mu.unsqueeze(1)
    weights = torch.where(newton.unsqueeze(1), weights, values * along / torch.where(below > 0, below, 1.0))
    return factors.step(weights), newton
