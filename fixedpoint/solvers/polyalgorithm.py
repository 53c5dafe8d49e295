"""Polyalgorithm: runs one solver, and passes the rows that it did not solve to a second solver.

The second solver gets only the rows that did not converge. It begins at the best points of the first solver, and has
the rounds that are left. If the problem can ``take`` rows, the other rows are not evaluated again. (Rice 1969, "On the
construction of polyalgorithms for automatic numerical analysis".)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.loop import StepSolver, iterate
from fixedpoint.core.options import by_options, option
from fixedpoint.core.pace import Pace
from fixedpoint.core.problem import AbilityError, HasCost, HasExactResidual, HasMeasure, HasTake, Measure, Problem
from fixedpoint.core.progress import Progress
from fixedpoint.core.root import RootProblem
from fixedpoint.core.solution import Solution, Trace
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device, to_host
from fixedpoint.core.turn import Pause, Turn, joined
from fixedpoint.core.yardstick import Yardstick
from fixedpoint.solvers.anderson import Anderson
from fixedpoint.solvers.newton_krylov import NewtonKrylov

__all__ = ["Polyalgorithm", "can_continue", "continue_with", "limit_of"]


@dataclass(frozen=True)
class Polyalgorithm(Solver):
    """Runs two solvers, one after the other: the second takes over the rows that the first did not solve."""

    first: Solver = option(factory=Anderson, help="the solver that every row gets")
    then: Solver = option(factory=NewtonKrylov, help="the solver for the rows that did not converge")
    share: float = option(0.5, gt=0.0, lt=1.0, help="part of the rounds the first solver may use")

    @by_options()
    def needs(self) -> frozenset[str]:
        """What either of the two solvers needs."""
        return self.first.needs | self.then.needs

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        problem = f.problem
        if not can_continue(problem):
            raise AbilityError(
                f"{type(problem).__name__} has a measure or cost of its own; to hand some of its rows on, "
                "it must be able to take them (a take method), and declare it (HasTake)"
            )
        limit = termination.max_rounds or limit_of(self.first, f)
        early = max(int(self.share * limit), 1)
        found = self.first.solve(f, z0, replace(termination, max_rounds=early), on_round)
        # A point that is not finite is no start.
        begin = torch.where(found.state.isfinite().all(1, keepdim=True), found.state, z0)
        found = continue_with(f, found, self.then, begin, replace(termination, max_rounds=limit), on_round)
        return replace(found, solver=self)


def continue_with(
    f: Evaluator,
    found: Solution,
    solver: Solver,
    begin: Float[Tensor, "B D"],
    termination: Termination,
    on_round: Callable[[Progress], None] | None = None,
    *,
    pace: Pace | None = None,
    latest: Float[Tensor, "B D"] | None = None,
    without: NDArray[np.bool_] | None = None,
    pauses: list[Pause] | None = None,
) -> Solution:
    """Run a solver on the rows of ``found`` that are not solved, each from its row of ``begin``, and join the results.

    ``termination.max_rounds``, which must be set, limits the rounds of both solves together. With a ``pace``, rows that
    are slower end as stalled, and their last values are written to ``latest``; the solver must then be a step solver.
    Rows ``without`` a chance are left as they are. Rows that are in ``pauses`` go on from there, not from ``begin``,
    and ``pauses`` then contains those that are paused again.
    """
    wanted = ~found.converged if without is None else ~found.converged & ~without
    failed, again = np.flatnonzero(wanted), None
    if pauses is not None:
        again = joined(pauses, failed)
        pauses.clear()
    given = partial(_continued_with, f, solver=solver, termination=termination, on_round=on_round, latest=latest)
    if again is not None:
        assert pace is not None
        found = given(found, again.rows, begin, pace=pace, pauses=pauses, resumed=again)
        failed = np.setdiff1d(failed, again.rows)
    return given(found, failed, begin, pace=pace, pauses=pauses)


def _continued_with(
    f: Evaluator,
    found: Solution,
    failed: NDArray[np.int64],
    begin: Float[Tensor, "B D"],
    *,
    solver: Solver,
    termination: Termination,
    on_round: Callable[[Progress], None] | None,
    pace: Pace | None,
    latest: Float[Tensor, "B D"] | None,
    pauses: list[Pause] | None,
    resumed: Pause | None = None,
) -> Solution:
    """Run a solver on some rows and join the results; a pace has the marks of these rows alone, if it has any."""
    assert termination.max_rounds is not None
    left = termination.max_rounds - found.counts.rounds
    if not len(failed) or left < 1:
        return found
    rule = _continued(replace(termination, max_rounds=left), found, failed)
    rows = to_device(failed, found.state.device)
    part = Evaluator(_rows_of(f.problem, rows, found.state), f.yardstick.take(failed), f.max_batch)
    part.learn(f)  # whether forward mode works need not be found out again
    # Growth is measured from the first point of the first solve: a state that runs away continues to do so here.
    if f.origin is not None:
        error, scale = f.origin
        part.origin = error[failed], scale[failed]
    told = _shifted(on_round, found.counts.rounds)
    if pace is None:
        more = solver.solve(part, begin[rows], rule, told)
    else:
        assert isinstance(solver, StepSolver)
        ends, paused = begin[rows], None if pauses is None else list[Pause]()
        more = iterate(solver, part, begin[rows], rule, told, Turn(pace.take(failed), ends, paused, resumed))
        if latest is not None:
            latest.index_copy_(0, rows, ends)
        if pauses is not None and paused is not None:
            pauses.extend(replace(each, rows=failed[each.rows]) for each in paused)
    return _joined(found, more, failed, rows, part.yardstick)


class _Rows(Problem):
    """Some rows of a problem that cannot take rows: the others are evaluated as well, at the points they ended at."""

    def __init__(self, whole: Problem, rows: Int[Tensor, " k"], rest: Float[Tensor, "B D"]) -> None:
        self.whole, self.rows, self.rest = whole, rows, rest
        self.layout = whole.layout.take(len(rows))

    def __call__(self, z: Float[Tensor, "k D"]) -> Float[Tensor, "k D"]:
        return self.whole(self.rest.index_copy(0, self.rows, z))[self.rows]

    def initial(self) -> Float[Tensor, "k D"]:
        return self.rest[self.rows]


class _MeasuredRows(_Rows, HasExactResidual, HasMeasure):
    """Some rows of a root problem, with its measure."""

    def __init__(self, whole: RootProblem, rows: Int[Tensor, " k"], rest: Float[Tensor, "B D"]) -> None:
        super().__init__(whole, rows, rest)
        self._measure, self._root = whole.measure_of(rows), whole

    def exact_residual(self) -> Float[Tensor, "k D"]:
        return self._root.exact_residual()[self.rows]

    def residual(self, z: Float[Tensor, "k D"]) -> Float[Tensor, "k D"]:
        return self._root.residual(self.rest.index_copy(0, self.rows, z))[self.rows]

    def measure(self, z: Float[Tensor, "k D"], fz: Float[Tensor, "k D"], residual: Float[Tensor, "k D"]) -> Measure:
        return self._measure(z)


def can_continue(problem: Problem) -> bool:
    """Whether a solve can be continued with only some rows of the problem."""
    own = isinstance(problem, (HasMeasure, HasCost)) and not isinstance(problem, RootProblem)
    return problem.layout.rows == 1 or isinstance(problem, HasTake) or not own


def _rows_of(problem: Problem, rows: Int[Tensor, " k"], rest: Float[Tensor, "B D"]) -> Problem:
    if isinstance(problem, HasTake):
        return problem.take(rows)
    if isinstance(problem, RootProblem):
        return _MeasuredRows(problem, rows, rest)
    return problem if len(rows) == problem.layout.rows else _Rows(problem, rows, rest)


def limit_of(solver: Solver, f: Evaluator) -> int:
    """The limit on rounds of the solver itself; 1000 if it has none."""
    return solver.rounds_bound(f) if isinstance(solver, StepSolver) else 1000


def _continued(rule: Termination, found: Solution, failed: NDArray[np.int64]) -> Termination:
    """The termination of the second solve.

    A tolerance relative to the first error stays relative to the first error of the first solve. One number must serve
    all rows, so it is that of the strictest row.
    """
    if rule.relative_to == "state":
        return rule
    strictest = float(np.nanmin(found.trace.error[0, failed]))
    return replace(rule, relative_to="state", rtol=0.0, atol=rule.atol + rule.rtol * strictest)


def _shifted(on_round: Callable[[Progress], None] | None, rounds: int) -> Callable[[Progress], None] | None:
    if on_round is None:
        return None
    return lambda progress: on_round(replace(progress, round=progress.round + rounds))


def _joined(
    found: Solution, more: Solution, failed: NDArray[np.int64], rows: Int[Tensor, " k"], yardstick: Yardstick
) -> Solution:
    """Join both solves into one solution; a row that neither of them solved keeps the better point."""
    # The second solve began at another point, perhaps the start: without convergence its answer may be the worse one.
    known = [numbers[failed] for numbers in to_host(found.error, found.scale)]
    better = more.converged | (yardstick.merit(*to_host(more.error, more.scale)) <= yardstick.merit(*known))
    chosen, taken = (to_device(each, rows.device) for each in (failed[better], np.flatnonzero(better)))

    def merged(first: Tensor, second: Tensor) -> Tensor:
        return first.index_copy(0, chosen, second.index_select(0, taken))

    status, rounds = list(found.status), found.rounds.copy()
    for position, row in enumerate(failed):
        status[row] = more.status[position]
        rounds[row] = found.counts.rounds + more.rounds[position]
    begun, counts, two = found.counts.rounds, found.counts, more.counts  # the evaluator's own object: its counts go on
    counts.rounds += two.rounds
    counts.calls += two.calls
    counts.computed += two.computed
    counts.evaluations[failed] += two.evaluations
    counts.products[failed] += two.products
    return replace(
        found,
        state=merged(found.state, more.state),
        fstate=merged(found.fstate, more.fstate),
        error=merged(found.error, more.error),
        scale=merged(found.scale, more.scale),
        status=tuple(Status(code) for code in status),
        rounds=rounds,
        trace=Trace(
            error=_stacked(found.trace.error, more.trace.error, failed),
            relative=_stacked(found.trace.relative, more.trace.relative, failed),
            rounds=np.concatenate([found.trace.rounds, begun + more.trace.rounds]),
        ),
        extras={**found.extras, **more.extras},
    )


def _stacked(first: NDArray[np.float64], second: NDArray[np.float64], failed: NDArray[np.int64]) -> NDArray[np.float64]:
    wide = np.full((len(second), first.shape[1]), np.nan)
    wide[:, failed] = second
    return np.concatenate([first, wide])
