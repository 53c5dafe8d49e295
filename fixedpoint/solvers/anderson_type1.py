r"""Anderson acceleration, type I, safeguarded.

With ``g(z) = z - f(z)``, ``s = z_k - z_{k-1}``, ``y = g_k - g_{k-1}`` and an estimate ``H`` of the inverse Jacobian of
``g``, which begins as ``H_0 = I`` (a plain step):

    s^      = s - sum_j (s^_j^T s / s^_j^T s^_j) s^_j     Gram-Schmidt over the steps kept
    eta     = s^^T H y / ||s^||^2
    theta   = 1 if |eta| >= theta_, else (1 - sign(eta) theta_) / (1 - eta)
    y~      = theta y - (1 - theta) g_{k-1}               Powell's regularisation
    H      <- H + (s - H y~) s^^T H / (s^^T H y~)
    z_{k+1} = z_k - H g_k

(Fang & Saad 2009, "Two classes of multisecant methods for nonlinear acceleration"; Zhang, O'Donoghue & Boyd 2020,
"Globally convergent type-I Anderson acceleration for nonsmooth fixed-point iterations", algorithm AA-I-S.) The memory
is cleared when it is full, or when a step lies nearly in the span of the stored steps. An accelerated step is taken
only while ``||g_k|| <= safeguard ||g_0|| (n + 1)^{-(1 + epsilon)}``, where ``n`` is the number of accelerated steps so
far. Otherwise the averaged step ``z + alpha (f(z) - z)`` is taken, which guarantees convergence for a nonexpansive map.

Where we differ: the authors evaluate ``f`` at every accelerated candidate, whether it is accepted or not. Here the
secants come from the points that are evaluated anyway, so that a round always is one evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.combine import add_combination
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.history import History
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_dots, row_norms, vecdot

__all__ = ["AndersonTypeOne", "AndersonTypeOneState"]

# The authors' epsilon and alpha.
_EPSILON = 1e-6
_AVERAGE = 0.1


@dataclass(frozen=True)
class AndersonTypeOneState:
    """What the solver keeps between steps.

    ``history`` holds the columns ``(c, d, s^)`` with ``H = I + sum c d^T`` and ``s^`` of unit length; ``previous`` is
    the last point, and ``linked`` marks the rows that may take a secant from it. ``first`` is the norm of the first
    residual, and ``accelerated`` the number of accelerated steps, both float64.
    """

    history: History
    previous: Evaluated | None
    linked: Bool[Tensor, " B"]
    first: Float[Tensor, " B"]
    accelerated: Float[Tensor, " B"]


@dataclass(frozen=True)
class AndersonTypeOne(StepSolver[AndersonTypeOneState]):
    """Anderson acceleration of type I, with Powell's regularisation, restarts and a safeguard."""

    memory: int = option(10, ge=1, help="m: number of steps kept before the memory is cleared")
    regularisation: float = option(0.01, gt=0.0, lt=1.0, help="theta_: how near to singular the estimate may come")
    dependence: float = option(
        0.001, gt=0.0, lt=1.0, help="tau: the memory is cleared when less than this fraction of a step is new"
    )
    safeguard: float = option(
        1e6, gt=0.0, help="D: growth of the residual over the first above which steps are averaged, not accelerated"
    )

    @property
    def supports_row_selection(self) -> bool:
        return True

    def init(self, f: Evaluator, at: Evaluated) -> AndersonTypeOneState:
        memory = min(self.memory, at.z.shape[1])
        size = at.residual_norm
        return AndersonTypeOneState(
            history=History.empty(at.z, memory, groups=3),
            previous=None,
            linked=torch.zeros_like(at.finite),
            first=size,
            accelerated=torch.zeros_like(size),
        )

    def reset(self, state: AndersonTypeOneState, rows: Bool[Tensor, " B"]) -> AndersonTypeOneState:
        return replace(state, history=state.history.forget(rows), linked=state.linked & ~rows)

    def step(
        self, f: Evaluator, at: Evaluated, state: AndersonTypeOneState
    ) -> tuple[Float[Tensor, "B D"] | Evaluated, AndersonTypeOneState]:
        state = self._updated(at, state)
        left, right, _ = state.history.columns
        # The step is -H g = H r = r + sum c (d^T r).
        weights = _masked(row_dots(right, at.residual), state.history.valid)
        plain = torch.add(at.z, at.residual, out=f.empty())
        quick = add_combination(plain, left, weights)
        size = at.residual_norm
        trusted = size <= self.safeguard * state.first * (state.accelerated + 1.0) ** -(1.0 + _EPSILON)
        averaged = torch.add(at.z, at.residual, alpha=_AVERAGE)
        proposal = torch.where(trusted.unsqueeze(1), quick, averaged)
        return proposal, replace(
            state,
            previous=at,
            linked=torch.ones_like(state.linked),
            accelerated=state.accelerated + trusted.to(size),
        )

    def _updated(self, at: Evaluated, state: AndersonTypeOneState) -> AndersonTypeOneState:
        """Store the newest secant; clear the memory first where it is full or spans nearly all of the step."""
        if state.previous is None:
            return state
        history = state.history
        s = at.z - state.previous.z
        length = row_norms(s.detach())
        sound = state.linked & (length > 0)
        length = torch.where(sound, length, 1.0)
        # A common factor of s, y and g_{k-1} does not change the update; of a unit s, dependence is a fraction.
        s = _scaled(s, 1.0 / length)
        y = _scaled(state.previous.residual - at.residual, 1.0 / length)  # the residual r is -g
        base = _scaled(state.previous.residual, 1.0 / length)  # -g_{k-1}, scaled like s
        full = history.valid.sum(dim=1) >= history.memory
        fresh = _orthogonal(s, history)
        dependent = row_norms(fresh.detach()) < self.dependence
        history = history.forget(full | dependent)
        fresh = torch.where((full | dependent).unsqueeze(1), s, fresh)
        left, right, _ = history.columns
        valid = history.valid
        inner = row_norms(fresh)
        inner = torch.where(inner > 0, inner, 1.0)
        transposed = add_combination(fresh, right, _masked(row_dots(left, fresh), valid))  # H^T s^
        eta = vecdot(transposed, y) / inner**2
        small = eta.abs() < self.regularisation
        sign = torch.where(eta < 0, -1.0, 1.0)
        theta = torch.where(small, (1.0 - sign * self.regularisation) / torch.where(small, 1.0 - eta, 1.0), 1.0)
        y = _scaled(y, theta) + _scaled(base, 1.0 - theta)
        denominator = vecdot(transposed, y)
        sound = sound & (denominator != 0) & denominator.isfinite()
        missed = s - add_combination(y, left, _masked(row_dots(right, y), valid))  # s - H y~
        size = torch.where(sound, row_norms(transposed.detach()), 1.0)
        scale = size / torch.where(sound, denominator, 1.0)
        history = history.push(
            _scaled(missed, scale), _scaled(transposed, 1.0 / size), _scaled(fresh, 1.0 / inner), valid=sound
        )
        return replace(state, history=history)


def _orthogonal(s: Float[Tensor, "B D"], history: History) -> Float[Tensor, "B D"]:
    """The part of ``s`` orthogonal to the stored orthonormal steps; projected twice to remove rounding errors."""
    units, valid = history.columns[2], history.valid
    for _ in range(2):
        s = add_combination(s, units, -_masked(row_dots(units, s), valid))
    return s


def _scaled(vector: Float[Tensor, "B D"], factor: Float[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """``factor * vector``, multiplied in at least single precision."""
    wide = torch.promote_types(vector.dtype, torch.float32)
    return (vector.to(wide) * factor.to(wide).unsqueeze(1)).to(vector.dtype)


def _masked(weights: Float[Tensor, "B m"], valid: Bool[Tensor, "B m"]) -> Float[Tensor, "B 1 m"]:
    return torch.where(valid, weights, torch.zeros_like(weights)).unsqueeze(1)
