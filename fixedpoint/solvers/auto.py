"""Auto: Anderson acceleration with a long regularised memory, then Newton-Krylov for rows that it does not solve.

With a long memory, Anderson acceleration of a linear map is as good as GMRES (Walker & Ni 2011, theorem 2.2). On
nonlinear maps, the filter and the ridge limit the harm of old columns, which curvature has made wrong. Measured on the
seven problems of the solver table (``docs/how-to/which-solver.md``), it takes the fewest evaluations of all methods in
the geometric mean.

Rows that do not converge that way are passed to Newton's method, which requires no contraction. It begins at their best
point. Extrapolation may have led that point astray (to a far point of small residual, or to a repelling fixed point),
so rows that still fail get Newton's method once more from the start. The rows that remain get plain iteration from the
start, so that no row is lost that plain iteration solves.

The cost is the memory of the history, ``2 m`` states. ``m`` is 100, or as many as fit into ``history_limit``, but at
least 5 (and at most the number of unknowns of a row).
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
from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.newton_krylov import NewtonKrylov
from fixedpoint.solvers.picard import Picard
from fixedpoint.solvers.polyalgorithm import can_continue, continue_with, limit_of

__all__ = ["Auto"]

_LONGEST, _SHORTEST = 100, 5
# Attempts, in this order, on rows that Anderson has not solved: the solver, whether it begins at the start instead of
# the best point, and its share of the rounds that are left.
_FALLBACKS = ((NewtonKrylov(), False, 0.5), (NewtonKrylov(), True, 0.5), (Picard(), True, 1.0))


@dataclass(frozen=True)
class Auto(Solver):
    """Anderson acceleration with a long memory; rows it does not solve get Newton-Krylov, then plain iteration.

    Anderson has half of the rounds. Newton-Krylov has half of the remaining rounds from the best point, then half of
    the rest from the start. Plain iteration from the start has all that are left. Only Anderson is used while autograd
    records the iterations, and for a problem that has a measure of its own and does not support taking rows.

    On a chain it makes a plan: it measures what steps cost, one at a time and several at once. It then solves the chain
    step by step or jointly, with or without a window, whichever is expected to be fastest. ``solution.extras["plan"]``
    contains the plan and the reasons for it.
    """

    history_limit: float = option(
        1.0,
        gt=0.0,
        help="memory the history may take, in GiB: it limits how many steps are kept, 5 to 100, and on a chain how "
        "wide a window may be",
    )

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        if not self.can_fall_back(f):
            return replace(self.anderson(f).solve(f, z0, termination, on_round), solver=self)
        limit = termination.max_rounds or limit_of(self.anderson(f), f)
        early = replace(termination, max_rounds=max(limit // 2, 1))
        found = self.anderson(f).solve(f, z0, early, on_round)
        for solver, anew, share in _FALLBACKS:
            spent = found.counts.rounds
            rule = replace(termination, max_rounds=spent + int(share * (limit - spent)))
            # A point that is not finite is no start.
            sound = found.state.isfinite().all(1, keepdim=True)
            begin = z0 if anew else torch.where(sound, found.state, z0)
            found = continue_with(f, found, solver, begin, rule, on_round)
        return replace(found, solver=self)

    def can_fall_back(self, f: Evaluator) -> bool:
        """Whether failed rows can be passed on: not while autograd records, nor where the rows cannot be separated."""
        return not torch.is_grad_enabled() and can_continue(f.problem)

    def anderson(self, f: Evaluator) -> Anderson:
        """Anderson acceleration with the memory that this problem allows."""
        layout = f.layout
        column = 2 * layout.rows * layout.size * layout.dtype.itemsize
        fitting = int(self.history_limit * 2**30 / column)
        memory = min(max(min(fitting, _LONGEST), _SHORTEST), layout.size)
        return Anderson(memory=memory, filter=0.05, ridge=1e-3, surprise=1.5)
