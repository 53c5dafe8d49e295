"""Step solvers, and the one loop that drives them: evaluate, judge, step.

A row that has finished keeps its answer, bit for bit, while the other rows go on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.decisions import RowRecord, codes_of, decision, progress_of
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.inverse_jacobian import InverseEstimate
from fixedpoint.core.outcome import solution_at
from fixedpoint.core.pace import Pace
from fixedpoint.core.problem import HasTake
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import Status
from fixedpoint.core.subset import RowSubset, is_small, select_rows
from fixedpoint.core.termination import Judge, Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.core.turn import Turn

__all__ = ["StepSolver", "SupportsWindow", "iterate", "stepped"]

S = TypeVar("S")
_ALONE = Turn()


class SupportsWindow(ABC):
    """A step solver whose problem may be a window: some consecutive blocks of a longer state, which it slides along."""

    @abstractmethod
    def slide(self, f: Evaluator, state: Any, move: Callable[[Tensor], Tensor]) -> Any:
        """Return the state with everything it stores of earlier points moved to the new places of the blocks.

        Parameters
        ----------
        f
            The evaluator, whose layout says how many blocks the window has.
        state
            The state that the last step, ``init`` or ``reset`` returned.
        move
            Moves the blocks of a tensor ``(B, n, *rest)`` along its second dimension, ``n`` a multiple of their number:
            in place unless gradients flow. Blocks that enter are zero.
        """

    @abstractmethod
    def renew(self, state: Any, at: Evaluated, blocks: Bool[Tensor, "B blocks"]) -> Any:
        """Return the state with the previous point replaced by ``at`` in ``blocks``: no change is learnt from there."""


class StepSolver(Solver, Generic[S]):
    """A solver that proposes one point after another and leaves the loop to the library.

    ``S`` is the type of its state: whatever it keeps between steps, in tensors whose first dimension is the rows.

    Attributes
    ----------
    affine
        Whether the solver assumes that ``f`` is affine: it may reach a solution far away in one long step, so the
        loop does not test it for running away.
    has_fixed_length
        Whether the solver ends after a known number of rounds, whatever the error does in between. Its answer is then
        the latest point, not the best one, and the loop does not test it for stalling or divergence.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"decisions"})
    affine: ClassVar[bool] = False
    has_fixed_length: ClassVar[bool] = False

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        return iterate(self, f, z0, termination, on_round)

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        """Evaluate the first point: the start, copied, since the memory of ``z0`` is the user's."""
        return f(z0.clone())

    def rounds_bound(self, f: Evaluator) -> int:
        """Return the limit on rounds that applies where the termination sets none."""
        return 1000

    @property
    def supports_row_selection(self) -> bool:
        """Whether the loop may drop finished rows from the batch (row compaction).

        Return True where the first dimension of every tensor of the state is the rows, also of tensors within
        dataclasses, tuples, lists and dicts, and the solver keeps nothing elsewhere.
        """
        return False

    @abstractmethod
    def init(self, f: Evaluator, at: Evaluated) -> S:
        """Return the state before the first step; ``at`` is the first evaluated point."""

    @abstractmethod
    def step(self, f: Evaluator, at: Evaluated, state: S) -> tuple[Float[Tensor, "B D"] | Evaluated, S]:
        """Return the next proposal and the new state.

        Rows must not mix, and nothing may wait for the device (no ``.item()``, no boolean indexing). What the host
        knows already is in ``at.numbers``.

        Parameters
        ----------
        f
            The evaluator, for steps that require further evaluations or products.
        at
            The current point of every row.
        state
            The state that the last step, ``init`` or ``reset`` returned.

        Returns
        -------
        proposal
            The point to evaluate next, shape ``(B, D)``; or an ``Evaluated``, where the step has already evaluated it.
        state
            The state for the next step.
        """

    def reset(self, state: S, rows: Bool[Tensor, " B"]) -> S:
        """Return the state without the history of ``rows``, so that their next step is a plain one where there is one.

        The loop calls this for rows that have left the domain of ``f``, when it has put them back to their best point,
        and in the rounds after that in which they take plain steps.
        """
        return state

    def asked(self, f: Evaluator, at: Evaluated, state: S) -> list[Tensor]:
        """Return small tensors that the step from ``at`` needs on the host.

        On a GPU they travel with the numbers by which the point is judged, so that a step waits for nothing. Their
        first dimension is the rows. The step must also work without having been told: on a CPU, where there is nothing
        to wait for, and where rows are put back to an earlier point.
        """
        return []

    def told(self, state: S, numbers: list[NDArray[Any]]) -> S:
        """Return the state that knows the numbers it asked for."""
        return state

    def reset_on_host(self, state: S, rows: NDArray[np.bool_], device: torch.device) -> S:
        """As :meth:`reset`, of rows that are known on the host; by default they are copied to the device."""
        return self.reset(state, to_device(rows, device))

    def paused(self, state: S, index: Int[Tensor, " k"]) -> S:
        """Return the state of some rows, from which they can go on later, also beside other rows.

        How it is laid out must not depend on the rows beside it. If these are all rows, it may be in the memory of
        ``state``, which is not used again.

        Raises
        ------
        TypeError
            If the solver cannot go on with rows that it has left.
        """
        raise TypeError(f"{type(self).__name__} does not say how its rows are paused")

    def exhausted(self, state: S) -> Bool[Tensor, " B"] | None:
        """Return the rows for which the solver knows no further step: they end as stalled. None: it always knows."""
        return None

    def extras(self, state: S) -> dict[str, Any]:
        """Return the entries for ``solution.extras`` from the final state."""
        return {}

    def inverse(self, state: S) -> InverseEstimate:
        """Return the estimate of ``(J - I)^{-1}`` from the final state; for solvers that provide ``"inverse"``.

        It holds, row by row, at the point that is returned: nothing evaluated after a row has finished may enter it.

        Raises
        ------
        TypeError
            If the solver keeps no such estimate.
        """
        raise TypeError(f"{type(self).__name__} keeps no estimate of the inverse Jacobian")


def stepped(solver: StepSolver[S], f: Evaluator, at: Evaluated, state: S) -> tuple[Float[Tensor, "B D"] | Evaluated, S]:
    """Take a step.

    Raises
    ------
    TypeError
        If the step returns anything but a proposal and a state. A tensor of two rows could be unpacked by mistake.
    """
    taken: Any = solver.step(f, at, state)
    if not isinstance(taken, (tuple, list)) or len(taken) != 2:
        kind = type(taken).__name__
        got = f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}" if taken is not None else "None"
        got = f"{len(taken)} values" if isinstance(taken, (tuple, list)) else got
        raise TypeError(f"{type(solver).__name__}: step must return (proposal, state), got {got}")
    proposal, state = taken
    return proposal, state


def iterate(
    solver: StepSolver[Any],
    f: Evaluator,
    z0: Float[Tensor, "B D"],
    termination: Termination,
    on_round: Callable[[Progress], None] | None = None,
    turn: Turn = _ALONE,
) -> Solution:
    """Drive a step solver until no row is running.

    A round reads the device once: the numbers by which its point is judged, and those that the solver asks for. All
    decisions are made from these on the host.

    Parameters
    ----------
    solver, f, z0, termination, on_round
        As for :meth:`.Solver.solve`.
    turn
        What is special where several solvers take turns; by default nothing is.

    Raises
    ------
    ValueError
        If ``norm`` or ``per`` of the evaluator differ from those of the termination.
    """
    parent, part = f, None
    judge = _judge(solver, f, termination, z0.dtype, turn.pace)
    f.limit = limit = termination.max_rounds or solver.rounds_bound(f)  # products within a step are rounds, too
    f.tracks_best = not solver.has_fixed_length
    f.reads_numbers = not f.wanted and not torch.is_grad_enabled()
    at, state = _begun(solver, f, z0, turn)
    selects = _supports_row_selection(solver, f)
    rows = RowRecord(z0.shape[0])
    while True:
        ends = solver.exhausted(state)
        at, told = f.read(at, *([] if ends is None else [ends]), *_asked(solver, f, at, state))
        assert at.numbers is not None  # it was read
        verdict = judge(at.numbers)
        codes = codes_of(verdict, None if ends is None else told.pop(0), f, limit, len(rows.running))
        kept = None
        if codes is not None:
            finished = rows.end(codes, f.counts.rounds)
            kept = finished & (solver.has_fixed_length | (codes == Status.CONVERGED))
            if kept.any():
                f.keep(kept, at)  # rows that failed return their best point instead
            lost = np.zeros_like(finished) if verdict.again is None else verdict.again == 2
            turn.leave(solver, rows.indices, finished, finished & (codes == Status.STALLED) & ~lost, at, state)
        again = None if verdict.again is None else verdict.again * rows.running
        if "decisions" in f.wanted:
            f.decisions.append(decision(rows.running, kept, again))
        if on_round is not None:
            on_round(progress_of(f, part, rows.running, at))
        if codes is not None and not rows.running.any():
            break
        if codes is not None and selects and is_small(rows.running):
            if part is not None:
                part.give_back()
            chosen = rows.compact()
            part = RowSubset(parent, rows.indices)
            at, state = select_rows((at, state), to_device(chosen, z0.device), chosen)
            f, judge = part.f, judge.select_rows(chosen)
            judge.yardstick = f.yardstick  # tolerances may differ from row to row
            again, told = None if again is None else again[chosen], [numbers[chosen] for numbers in told]
        if codes is not None:
            f.narrow(rows.running)
        if again is not None and again.any():
            at, state, told = _restarted(solver, f, at, state, again)
        proposal, state = stepped(solver, f, at, solver.told(state, told) if told else state)
        del at  # frees the last value, so that f can allocate the next one in its place
        at = proposal if isinstance(proposal, Evaluated) else f(proposal)
    if part is not None:
        part.give_back()
    extras = {**solver.extras(state), **({"inverse": solver.inverse(state)} if "inverse" in parent.wanted else {})}
    del state, at  # frees the history before `answer` copies the point, which lowers the peak of memory
    return solution_at(parent.answer, rows.statuses, rows.rounds, parent, solver, extras)


def _begun(solver: StepSolver[S], f: Evaluator, z0: Float[Tensor, "B D"], turn: Turn) -> tuple[Evaluated, S]:
    """Return the first point and the state before the step from there; after a pause these are its next ones."""
    if turn.resumed is None:
        at = solver.begin(f, z0)
        return at, solver.init(f, at)
    proposal, state = stepped(solver, f, turn.resumed.at, turn.resumed.state)
    return proposal if isinstance(proposal, Evaluated) else f(proposal), state


def _judge(
    solver: StepSolver[Any], f: Evaluator, termination: Termination, dtype: torch.dtype, pace: Pace | None
) -> Judge:
    """Make the judge of a solve; raise ``ValueError`` where evaluator and termination measure differently."""
    measured, wanted = (f.yardstick.norm, f.yardstick.per), (termination.norm, termination.per)
    if measured != wanted:
        raise ValueError(
            f"the evaluator measures in the {' norm per '.join(measured)}, "
            f"the termination requires {' per '.join(wanted)}"
        )
    kind = {"has_fixed_length": solver.has_fixed_length, "affine": solver.affine}
    kind["can_restart"] = type(solver).reset is not StepSolver.reset
    return Judge(termination, dtype, **kind, origin=f.origin, yardstick=f.yardstick, pace=pace)


def _asked(solver: StepSolver[S], f: Evaluator, at: Evaluated, state: S) -> list[Tensor]:
    """Return what the solver asks to be read with the numbers of a point; on a CPU it reads them itself."""
    if not f.reads_numbers or at.z.device.type == "cpu":
        return []
    return solver.asked(f, at, state)


def _restarted(
    solver: StepSolver[S], f: Evaluator, at: Evaluated, state: S, again: NDArray[np.int8]
) -> tuple[Evaluated, S, list[NDArray[Any]]]:
    """Return point and state with rows put back to their best point and begun anew, and nothing of what was asked."""
    rescued = again == 2
    if rescued.any():
        at = at.with_rows_of(f.best, rescued)
    return at, solver.reset_on_host(state, again > 0, at.z.device), []


def _supports_row_selection(solver: StepSolver[Any], f: Evaluator) -> bool:
    """Whether the loop may compact its rows.

    It may not where a gradient estimator requires the solver's state or the decisions of all rows (``f.wanted``).
    """
    return (
        solver.supports_row_selection
        and not solver.has_fixed_length
        and not f.wanted
        and f.layout.rows > 1
        and isinstance(f.problem, HasTake)
    )
