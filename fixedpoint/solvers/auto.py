"""The documented choice: Anderson acceleration with a long regularised memory, then Newton-Krylov for what it leaves.

A long memory makes Anderson acceleration of a linear map as good as GMRES (Walker & Ni 2011, theorem 2.2), and on
nonlinear ones the filter and the ridge keep old columns, which a curved map has made wrong, from doing harm. Measured
on the seven problems of the solver table (``docs/how-to/which-solver.md``) it takes the fewest evaluations of all
methods in the geometric mean. Rows that do not converge that way are handed on to Newton's method, which needs no
contraction: from their best point, and, since that may be where extrapolation has led astray (a far point of small
residual, another fixed point that repels), once more from the start. What is left gets plain rounds from the start:
what these solve is not to be lost.

The history is the cost: ``2 m`` states. ``m`` is 100, or as many as fit into ``history_limit``, never fewer than 5.
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
# What rows get one after another that Anderson has not solved: the solver, whether it begins at the start, and its part
# of the rounds that are left.
_FALLBACKS = ((NewtonKrylov(), False, 0.5), (NewtonKrylov(), True, 0.5), (Picard(), True, 1.0))


@dataclass(frozen=True)
class Auto(Solver):
    """Anderson acceleration with a long memory; rows it does not solve go on to Newton-Krylov, and to plain iteration.

    Anderson has half of the rounds; Newton-Krylov half of what is left, from the best point, and half of what is left
    then, from the start; plain iteration from the start the rest. While autograd records the iterations, and where a
    problem with a measure of its own cannot take rows, there is Anderson alone.

    On a chain it plans: it measures what steps cost, one and several at once, and goes step by step or jointly, in a
    window or not, whichever is expected to be quickest; ``solution.extras["plan"]`` says what and why.
    """

    history_limit: float = option(
        1.0,
        gt=0.0,
        help="memory the history may take, in GiB: it decides how many steps are kept, 5 to 100; of a "
        "chain, how wide a window may be",
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
            sound = found.state.isfinite().all(1, keepdim=True)
            begin = z0 if anew else torch.where(sound, found.state, z0)
            found = continue_with(f, found, solver, begin, rule, on_round)
        return replace(found, solver=self)

    def can_fall_back(self, f: Evaluator) -> bool:
        """Whether rows can go on to Newton's method: not while autograd records, nor where they cannot be taken out."""
        return not torch.is_grad_enabled() and can_continue(f.problem)

    def anderson(self, f: Evaluator) -> Anderson:
        """The first solver for this problem."""
        layout = f.layout
        column = 2 * layout.rows * layout.size * layout.dtype.itemsize
        fitting = int(self.history_limit * 2**30 / column)
        memory = min(max(min(fitting, _LONGEST), _SHORTEST), layout.size)
        return Anderson(memory=memory, filter=0.05, ridge=1e-3, surprise=1.5)
