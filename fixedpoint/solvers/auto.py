"""Auto: Anderson acceleration with a long memory, in turns with SQUAREM, then with Newton-Krylov as well.

With a long memory, Anderson acceleration of a linear map is as good as GMRES (Walker & Ni 2011, theorem 2.2). On
nonlinear maps, the filter and the ridge limit the harm of old columns, which curvature has made wrong. On most maps it
takes few evaluations (``benchmarks/maps.py`` counts them on 51 maps).

On the others it goes round in circles where plain iteration arrives: expectation maximisation, clustering, power
iteration. Cyclic SQUAREM, which never leaves plain iteration for long, solves nearly all of these. So a row that is
slow (its relative error has not fallen by a tenth in 8 rounds) changes to SQUAREM, from the start, since extrapolation
may have led its best point astray. Where SQUAREM is slow (20 rounds), or has not beaten the best error after three
quarters of the evaluations that Anderson had, it is Anderson's turn again. Both go on from where they were: Anderson
with all its columns, since a long memory is slow to fill, and SQUAREM from its last point, since under plain iteration
errors may rise for long before they fall. Every further turn has twice the patience. Newton's method, which requires no
contraction, has a turn between the two in the second turn, from the best point, and in the third, from the start.

The cost is the memory of the history, ``2 m`` states. ``m`` is 100, or as many as fit into ``history_limit``, but at
least 5 (and at most the number of unknowns of a row).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.loop import iterate
from fixedpoint.core.options import option
from fixedpoint.core.pace import Pace
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Termination, at_rounding_floor
from fixedpoint.core.transfer import to_device, to_host
from fixedpoint.core.turn import Pause, Turn, without_rows
from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.newton_krylov import NewtonKrylov
from fixedpoint.solvers.polyalgorithm import can_continue, continue_with
from fixedpoint.solvers.squarem import Squarem

__all__ = ["Auto"]

_LONGEST, _SHORTEST = 100, 5
# A row is slow if its relative error does not fall to this part within so many rounds: of Anderson acceleration and of
# SQUAREM in their first turns. The counts depend little on these numbers.
_PART, _FAST, _STEADY = 0.9, 8, 20
# A turn of SQUAREM that has not beaten the best error ends after this part of the evaluations that Anderson has had,
# but not before so many rounds.
_SHARE, _FEWEST = 0.75, 16
_STUCK, _LEAP = 0.9, 0.1
# Newton-Krylov may use the rounds up to this multiple of those spent so far, and up to this number.
_NEWTON, _LEAST = 1.25, 200
# The limit on rounds. It is twice that of other solvers, so that what they solve is solved although turns are shared.
# The patience of the last turn exceeds it.
_MOST, _TURNS = 2000, 8
_LOST = (Status.DIVERGED, Status.NONFINITE)


@dataclass(frozen=True)
class Auto(Solver):
    """Anderson acceleration with a long memory, in turns with SQUAREM, then with Newton-Krylov as well.

    A row that Anderson does not bring on goes to SQUAREM, which begins at the start and stays near plain iteration, so
    that it solves nearly all rows that plain iteration solves. A row that this does not bring on either goes to
    Newton-Krylov, which requires no contraction, and back to Anderson, with more patience in every turn. Its limit is
    2000 rounds. Only Anderson is used while autograd records the iterations, and for a problem that has a measure of
    its own and does not support taking rows.

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
        limit = termination.max_rounds or _MOST

        def size(found: Solution) -> NDArray[np.float64]:
            return f.yardstick.in_tolerances(*to_host(found.error, found.scale))

        rule = replace(termination, max_rounds=limit)
        anderson, squarem, newton = self.anderson(f), Squarem(), NewtonKrylov()
        ahead = z0.clone()  # where SQUAREM goes on
        pauses: list[Pause] = []  # from which Anderson goes on
        found = iterate(anderson, f, z0, rule, on_round, Turn(Pace(_FAST, _PART), pauses=pauses))
        spent = found.counts.evaluations.copy()  # by Anderson
        hopeless = np.zeros(len(z0), dtype=np.bool_)
        tried = np.zeros(len(z0), dtype=np.int64)  # how often Newton-Krylov
        mark = size(found)
        for turn in range(_TURNS):
            most = np.maximum(_SHARE * spent, float(_FEWEST))
            pace = Pace(_STEADY << turn, _PART, most=most, rival=size(found))
            found = continue_with(f, found, squarem, ahead, rule, on_round, pace=pace, latest=ahead, without=hopeless)
            ahead, reached = _finite(ahead, z0), size(found)
            stuck = (reached > _STUCK * mark) & (tried < 2) & (turn > 0)
            if stuck.any():
                share = replace(rule, max_rounds=min(limit, max(int(_NEWTON * found.counts.rounds), _LEAST)))
                begin = torch.where(to_device(tried == 0, z0.device).unsqueeze(1), _finite(found.state, z0), z0)
                tried += stuck & ~found.converged & ~hopeless
                found = continue_with(f, found, newton, begin, share, on_round, without=hopeless | ~stuck)
            mark = size(found)
            pauses = without_rows(pauses, np.flatnonzero(mark < _LEAP * reached))
            before = found.counts.evaluations.copy()
            begin, pace = _finite(found.state, z0), Pace(_FAST << (turn + 1), _PART)
            found = continue_with(f, found, anderson, begin, rule, on_round, pace=pace, without=hopeless, pauses=pauses)
            spent += found.counts.evaluations - before
            # What no method brings below the rounding of f, none will.
            hopeless |= _at_floor(found, z0.dtype)
            # Every method has been tried, Newton-Krylov from two points.
            hopeless |= np.array([status in _LOST for status in found.status]) & (tried == 2)
            if (found.converged | hopeless).all() or found.counts.rounds >= limit:
                break
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


def _at_floor(found: Solution, dtype: torch.dtype) -> NDArray[np.bool_]:
    """Which rows have only the rounding of ``f`` left of their error."""
    error, scale = to_host(found.error, found.scale)
    floor: NDArray[np.bool_] = at_rounding_floor(error, scale, torch.finfo(dtype).eps)
    return floor


def _finite(point: Float[Tensor, "B D"], start: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Return the point, and the start in rows where it is not finite: it is then no point to begin at."""
    return torch.where(point.isfinite().all(1, keepdim=True), point, start)
