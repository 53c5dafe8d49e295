"""The one loop: evaluate, judge, step; rows that finished keep their answer bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.counts import Decision
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.part import Part, is_small, taken
from fixedpoint.core.point import Point
from fixedpoint.core.problem import HasTake
from fixedpoint.core.solution import Solution, Trace
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Judge, Termination
from fixedpoint.core.transfer import to_device

if TYPE_CHECKING:
    from fixedpoint.core.solver import StepSolver

__all__ = ["Progress", "iterate", "solution_at"]


@dataclass(frozen=True)
class Progress:
    """Where a solve stands after a round: for progress displays and hooks.

    Attributes
    ----------
    round
        Rounds so far.
    running
        Rows that are.
    relative_error
        The largest of any row; NaN where a solver has none to tell.
    evaluations
        Shape ``(B,)``: evaluations of every row so far; None where a solver has none to tell.
    latest
        ``f`` at the point the round evaluated, shape ``(B, D)``; of a chain, what its last step makes of the state
        before, shape ``(B, d)``: the image as it forms. Its memory is used again; None where a solver has none.
    """

    round: int
    running: int
    relative_error: float
    evaluations: NDArray[np.int64] | None = None
    latest: Float[Tensor, "B n"] | None = None


def iterate(
    solver: StepSolver[Any],
    f: Evaluator,
    z0: Float[Tensor, "B D"],
    termination: Termination,
    on_round: Callable[[Progress], None] | None = None,
) -> Solution:
    """Drive a step solver until no row is running.

    The decisions of a round are tensors; they are read once a round, which is the only host synchronisation
    (a progress callback costs another).

    Raises
    ------
    ValueError
        When the evaluator measures otherwise than the termination wants.
    """
    whole, part = f, None
    limit = termination.max_rounds or solver.rounds_bound(f)
    measured, wanted = (f.yardstick.norm, f.yardstick.per), (termination.norm, termination.per)
    if measured != wanted:
        raise ValueError(
            f"the evaluator measures in the {' norm per '.join(measured)}, the termination wants {' per '.join(wanted)}"
        )
    f.limit = limit
    f.tracks_best = not solver.lasting
    kind = {"lasting": solver.lasting, "affine": solver.affine}
    judge = Judge(termination, z0.dtype, **kind, origin=f.origin, yardstick=f.yardstick)
    at = solver.begin(f, z0)
    state = solver.init(f, at)
    narrows = _narrows(solver, f)
    status = np.zeros(z0.shape[0], dtype=np.int8)
    rounds = np.zeros(z0.shape[0], dtype=np.int64)
    rows = np.arange(z0.shape[0])  # those that f has
    final = status.copy()  # theirs
    while True:
        judged, rescued = judge(at)
        host = _to_host(judged, rescued, f.improved if f.tracks_best else rescued)
        if f.tracks_best:
            f.settle(everywhere=bool(host[2].all()) and not torch.is_grad_enabled())
        running = final == Status.RUNNING
        rounds[rows[running]] = f.counts.rounds
        final[running] = host[0][running]
        if f.counts.rounds >= limit:
            final[final == Status.RUNNING] = Status.MAX_ROUNDS
        finished = running & (final != Status.RUNNING)
        kept = finished & (solver.lasting | (final == Status.CONVERGED))
        f.keep(kept, at)
        running = final == Status.RUNNING
        status[rows] = final
        if "decisions" in f.wanted:
            f.decisions.append(Decision(kept, running, host[1].astype(np.bool_) & running))
        if on_round is not None:
            on_round(_progress(f, part, running, at))
        if not running.any():
            break
        if narrows and is_small(running):
            if part is not None:
                part.give_back()
            chosen = np.flatnonzero(running)
            rows, final, rescued = rows[chosen], final[chosen], rescued[to_device(chosen, z0.device)]
            part = Part(whole, rows)
            at, state, judge = _taken_rows(to_device(chosen, z0.device), at, state, judge)
            f, host, running = part.f, host[:, chosen], running[chosen]
            judge.yardstick = f.yardstick
        f.narrow(running)
        if (host[1].astype(np.bool_) & running).any():
            at = f.best.where(rescued, at)
            state = solver.reset(state, rescued)
        proposal, state = solver.step(f, at, state)
        del at  # its memory is the problem's again
        at = proposal if isinstance(proposal, Evaluated) else f(proposal)
    if part is not None:
        part.give_back()
    extras = solver.extras(state)
    if "inverse" in whole.wanted:
        extras["inverse"] = solver.inverse(state)
    del state, at  # the history makes room for a copy of the answer
    return solution_at(whole.answer, tuple(Status(int(code)) for code in status), rounds, whole, solver, extras)


def solution_at(
    at: Point,
    status: tuple[Status, ...],
    rounds: NDArray[np.int64],
    f: Evaluator,
    solver: Any,
    extras: dict[str, Any] | None = None,
) -> Solution:
    """The solution that says what was judged at ``at``; for solvers that own their loop, too."""
    return Solution(
        state=at.z,
        fstate=at.fz,
        error=at.error,
        scale=at.scale,
        status=status,
        rounds=rounds,
        counts=f.counts,
        trace=Trace(error=_stack(f.errors), relative=_stack(f.relative), rounds=np.array(f.judged_after)),
        solver=solver,
        layout=f.layout,
        extras=extras or {},
    )


def _narrows(solver: StepSolver[Any], f: Evaluator) -> bool:
    """Whether the loop may go on with some of the rows alone.

    Not where somebody wants the state or the decisions of all rows in the end.
    """
    return (
        solver.narrows and not solver.lasting and not f.wanted and f.layout.rows > 1 and isinstance(f.problem, HasTake)
    )


def _taken_rows(index: Tensor, at: Evaluated, state: Any, judge: Judge) -> tuple[Evaluated, Any, Judge]:
    """Some of the rows of all that a loop has; a tensor that is in two places still is."""
    at, state = taken((at, state), index)
    return at, state, judge.taken(lambda kept: taken(kept, index))


def _progress(f: Evaluator, part: Part | None, running: NDArray[np.bool_], at: Evaluated) -> Progress:
    evaluations = f.counts.evaluations.copy() if part is None else part.evaluations
    latest = at.fz if part is None else part.widened(at.fz)
    return Progress(f.counts.rounds, int(running.sum()), _worst(f), evaluations, latest)


def _to_host(status: Tensor, *masks: Tensor) -> NDArray[np.int8]:
    stacked: NDArray[np.int8] = torch.stack([status, *(mask.to(torch.int8) for mask in masks)]).cpu().numpy()
    return stacked


def _worst(f: Evaluator) -> float:
    return float(f.relative[-1].nan_to_num(nan=0.0, posinf=torch.inf).amax())


def _stack(rounds: list[Tensor]) -> NDArray[np.float64]:
    stacked: NDArray[np.float64] = torch.stack(rounds).cpu().numpy()
    return stacked
