"""Step solvers and the one loop: evaluate, judge, step; rows that finished keep their answer bit for bit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.counts import Decision
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.inverse_jacobian import InverseEstimate
from fixedpoint.core.point import Point
from fixedpoint.core.problem import HasTake
from fixedpoint.core.progress import Progress
from fixedpoint.core.shift import Shift
from fixedpoint.core.solution import Solution, Trace
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import Status
from fixedpoint.core.subset import RowSubset, is_small, select_rows
from fixedpoint.core.termination import Judge, Termination
from fixedpoint.core.transfer import to_device

__all__ = ["StepSolver", "SupportsWindow", "iterate", "solution_at"]

S = TypeVar("S")


class SupportsWindow(ABC):
    """A step solver that can accelerate a window that slides along a chain."""

    @abstractmethod
    def slide(self, f: Evaluator, state: Any, shift: Shift) -> Any:
        """Move all that is kept of earlier points along with the blocks of the state."""

    @abstractmethod
    def renew(self, state: Any, at: Evaluated, blocks: Bool[Tensor, "B blocks"]) -> Any:
        """Take it that in these blocks the point before ``at`` is not comparable with it."""


class StepSolver(Solver, Generic[S]):
    """A solver that proposes one point after another; the loop does all the rest.

    ``S`` is its state: whatever it keeps between steps, held per row along the first dimension.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"decisions"})

    affine: ClassVar[bool] = False
    """Takes the map for affine: its solution may be any distance away, and is reached in one long step."""

    has_fixed_length: ClassVar[bool] = False
    """Ends by itself after a known number of rounds, whatever the error does meanwhile; the answer is the latest
    point, not the best."""

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        return iterate(self, f, z0, termination, on_round)

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        """The first evaluated point: the start, in memory that is not the user's."""
        return f(z0.clone())

    def rounds_bound(self, f: Evaluator) -> int:
        """Limit on rounds where the termination sets none."""
        return 1000

    @property
    def supports_row_selection(self) -> bool:
        """Whether the loop may go on with some of its rows alone, once the others have ended.

        It may where every tensor of the state, in dataclasses, tuples, lists and dicts, has the rows for its first
        dimension, and nothing is kept elsewhere.
        """
        return False

    @abstractmethod
    def init(self, f: Evaluator, at: Evaluated) -> S:
        """The state before the first step."""

    @abstractmethod
    def step(self, f: Evaluator, at: Evaluated, state: S) -> tuple[Float[Tensor, "B D"] | Evaluated, S]:
        """The next proposal, or the next point already evaluated, and the new state.

        Rows must not mix, and nothing may wait for the device (no ``.item()``, no boolean indexing).
        """

    def reset(self, state: S, rows: Bool[Tensor, " B"]) -> S:
        """Forget the history of ``rows``: the loop has put them back to their best point."""
        return state

    def extras(self, state: S) -> dict[str, Any]:
        """What the solution is to carry from the final state."""
        return {}

    def inverse(self, state: S) -> InverseEstimate:
        """The estimate of ``(J - I)^{-1}`` in the final state; of solvers that provide ``"inverse"``.

        Row by row it belongs to the point that is returned: what a row is given after it has finished takes no part.
        """
        raise TypeError(f"{type(self).__name__} keeps no estimate of the inverse Jacobian")


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
        When the evaluator measures otherwise than the termination requires.
    """
    parent, part = f, None
    judge = _judge(solver, f, termination, z0.dtype)
    f.limit = limit = termination.max_rounds or solver.rounds_bound(f)
    f.tracks_best = not solver.has_fixed_length
    at = solver.begin(f, z0)
    state = solver.init(f, at)
    selects = _supports_row_selection(solver, f)
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
        kept = finished & (solver.has_fixed_length | (final == Status.CONVERGED))
        f.keep(kept, at)
        running = final == Status.RUNNING
        status[rows] = final
        if "decisions" in f.wanted:
            f.decisions.append(Decision(kept, running, host[1].astype(np.bool_) & running))
        if on_round is not None:
            on_round(_progress(f, part, running, at))
        if not running.any():
            break
        if selects and is_small(running):
            if part is not None:
                part.give_back()
            chosen = np.flatnonzero(running)
            rows, final, rescued = rows[chosen], final[chosen], rescued[to_device(chosen, z0.device)]
            part = RowSubset(parent, rows)
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
    extras = {**solver.extras(state), **({"inverse": solver.inverse(state)} if "inverse" in parent.wanted else {})}
    del state, at  # the history makes room for a copy of the answer
    return solution_at(parent.answer, tuple(Status(int(code)) for code in status), rounds, parent, solver, extras)


def _judge(solver: StepSolver[Any], f: Evaluator, termination: Termination, dtype: torch.dtype) -> Judge:
    measured, wanted = (f.yardstick.norm, f.yardstick.per), (termination.norm, termination.per)
    if measured != wanted:
        raise ValueError(
            f"the evaluator measures in the {' norm per '.join(measured)}, "
            f"the termination requires {' per '.join(wanted)}"
        )
    kind = {"has_fixed_length": solver.has_fixed_length, "affine": solver.affine}
    return Judge(termination, dtype, **kind, origin=f.origin, yardstick=f.yardstick)


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


def _supports_row_selection(solver: StepSolver[Any], f: Evaluator) -> bool:
    """Whether the loop may go on with some of the rows alone.

    Not where somebody requires the state or the decisions of all rows in the end.
    """
    return (
        solver.supports_row_selection
        and not solver.has_fixed_length
        and not f.wanted
        and f.layout.rows > 1
        and isinstance(f.problem, HasTake)
    )


def _taken_rows(index: Tensor, at: Evaluated, state: Any, judge: Judge) -> tuple[Evaluated, Any, Judge]:
    """Some of the rows of all that a loop has; a tensor that is in two places still is."""
    at, state = select_rows((at, state), index)
    return at, state, judge.select_rows(lambda kept: select_rows(kept, index))


def _progress(f: Evaluator, part: RowSubset | None, running: NDArray[np.bool_], at: Evaluated) -> Progress:
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
