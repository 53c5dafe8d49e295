"""Roots: the default of ``find_root``; members of different strength, one after another, for the rows still unsolved.

For up to ``dense`` unknowns in a row, the first is Newton's method, damped by a test that knows neither units nor signs
of the equations. The second is a trust region, which cannot be led away from a residual once reached. The third is
Newton's method without damping, which jumps out of the minima of the residual that end both others. The last is
Broyden's method from the best point, for what has no useful Jacobian. For more unknowns they are Newton-Krylov,
Broyden's method, and Newton-Krylov from the best point.
(Rice 1969, "On the construction of polyalgorithms for automatic numerical analysis"; with Newton's method and trust
regions in this order: Pal et al. 2024, "NonlinearSolve.jl: High-performance and robust solvers for systems of
nonlinear equations in Julia", section 3.4.)

All but the last begin at the start. The rounds are shared, and a row keeps the best point that any of them found. A
minimum of the residual that is no root is not called one, whichever member ends there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.solvers.broyden import Broyden
from fixedpoint.solvers.newton import Newton
from fixedpoint.solvers.newton_krylov import NewtonKrylov
from fixedpoint.solvers.polyalgorithm import can_continue, continue_with
from fixedpoint.solvers.trust_region import TrustRegion

__all__ = ["Roots"]

# The member, whether it begins at the start instead of the best point, and its share of the rounds that are left.
_Members = tuple[tuple[Solver, bool, float], ...]
_FEW: _Members = (
    (Newton(), True, 0.4),
    (TrustRegion(), True, 0.5),
    (Newton(damping="none"), True, 0.5),
    (Broyden(), False, 1.0),
)
_MANY: _Members = ((NewtonKrylov(), True, 0.5), (Broyden(), True, 0.5), (NewtonKrylov(), False, 1.0))
# Numbers in the Jacobians of all rows, at most; their factors take three times as much.
_NUMBERS = 2**25
_ROUNDS, _ROUNDS_PER_UNKNOWN = 1000, 200


@dataclass(frozen=True)
class Roots(Solver):
    """Newton's method, a trust region, and Broyden's method in turn: what ``find_root`` uses by default.

    While autograd records the iterations, and where a gradient estimator asks for an estimate of the inverse Jacobian
    or for the decisions of the loop, it is Broyden's method alone.
    """

    dense: int = option(64, ge=0, help="unknowns of a row up to which whole Jacobians are computed")

    provides = Broyden.provides

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        if torch.is_grad_enabled() or f.wanted:
            return Broyden().solve(f, z0, termination, on_round)
        members, limit = self._members(f), termination.max_rounds or self._limit(f)
        if not can_continue(f.problem):
            members = members[:1]
        found: Solution | None = None
        for solver, anew, share in members:
            spent = 0 if found is None else found.counts.rounds
            rounds = limit if len(members) == 1 else min(spent + max(int(share * (limit - spent)), 1), limit)
            rule = replace(termination, max_rounds=rounds)
            if found is None:
                found = solver.solve(f, z0, rule, on_round)
                continue
            sound = found.state.isfinite().all(1, keepdim=True)  # a point that is not finite is no start
            found = continue_with(f, found, solver, z0 if anew else torch.where(sound, found.state, z0), rule, on_round)
        assert found is not None  # there is at least one member
        return replace(found, solver=self)

    def _members(self, f: Evaluator) -> _Members:
        """Return the solvers for problems of this size."""
        few = f.layout.size <= self.dense and f.layout.rows * f.layout.size**2 <= _NUMBERS
        return _FEW if few else _MANY

    def _limit(self, f: Evaluator) -> int:
        """Return the limit on rounds; larger where every column of a Jacobian is one."""
        differences = self._members(f) is _FEW and f.jacobian_rounds > 1
        return max(_ROUNDS, _ROUNDS_PER_UNKNOWN * (f.layout.size + 1)) if differences else _ROUNDS
