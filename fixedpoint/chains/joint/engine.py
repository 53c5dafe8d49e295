r"""Runs the rounds of a joint solve of a chain, in a window per row that slides along the chain.

For every row the window holds predictions ``offset .. offset + p - 1`` and the states after them. A round, from top to
bottom:

1. evaluate the predictions whose input has changed (for opaque steps, the steps themselves),
2. inspect: what the recurrence makes of inputs and predictions, minus the states, are the defects; carried along the
   chain they imply a change ``delta_i`` of every state,
3. judge the rows by the largest of these changes,
4. slide the window up to the first state that is not final,
5. let the accelerator propose states, and move those that should move.

The implied change decides what happens to a state:

- States at the front of the window with ``||delta_i|| <= slack * tolerance`` become *final*: they keep their value and
  are never changed again. The window slides up to them.
- The next state takes the value that the recurrence gives it, plus what the changes not applied to final states pass
  on to it, and becomes final too. So every round makes at least one state final, and ``N`` rounds are enough for any
  preconditioner and accelerator.
- Later states within the same bound are *quiet*: they keep their value for this round, so that the steps evaluated at
  them need no new evaluation. Nothing is lost: their defects remain, take part in the next sweep, and move the state
  once they add up.
- All other states move to the accelerator's proposal.

Every defect thus belongs to the states as they are, never to states that moved after the evaluation, so the returned
states need no extra verification. The error of a row is the largest relative change implied at any state; for final
states it is the change implied when they became final.

The host reads one transfer from the device per round. When the chain is ``n`` times as long as the window, the share of
the tolerance up to which a state may keep its value is ``slack / sqrt(n)``: changes that are not applied at different
places add up at the end of the chain like independent errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.calls import evaluate_pairs
from fixedpoint.chains.joint.accelerator import Accelerator, View
from fixedpoint.chains.joint.incoming import IncomingStates
from fixedpoint.chains.joint.rows import Report, Rows
from fixedpoint.chains.joint.shift import Shift
from fixedpoint.chains.joint.slopes import DerivativeSlopes
from fixedpoint.chains.joint.window import HostMask, Trail, Window, moved
from fixedpoint.chains.measure import finite_states, read_relative, sizes_to_read
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.linear import Band, LinearPart
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.point import Numbers, Point
from fixedpoint.core.progress import Progress
from fixedpoint.core.termination import Judge, Termination
from fixedpoint.core.transfer import to_host

__all__ = ["Engine"]


class Engine:
    """Runs one joint solve.

    Parameters
    ----------
    f
        The evaluator of the chain.
    problem
        The chain.
    states
        The initial states: shape ``(B, N, d)`` for all states, ``(B, p, d)`` for the first ``p``, or ``(B, 1, d)`` for
        one value that all states start from.
    exact
        Shape ``(B,)``: how many of the first states of each row are final from the start.
    width
        ``p``, the number of predictions in the window.
    slack
        The largest share of the tolerance within which a state may keep its value, in ``[0, 1)``; for a window of the
        whole chain.
    accelerator
        Proposes the states of the next round.
    linear
        The linear part if it is known before the first round; None if it is made of derivatives.
    full_jacobian
        Whether these derivatives are Jacobians, not diagonals.
    extended
        Whether states that enter the window start from the extension of the last step in it.
    """

    def __init__(
        self,
        f: Evaluator,
        problem: ChainProblem,
        states: Float[Tensor, "B n d"],
        exact: NDArray[np.int64],
        *,
        width: int,
        slack: float,
        accelerator: Accelerator[Any],
        linear: LinearPart | Band | None,
        full_jacobian: bool = False,
        extended: bool = False,
    ) -> None:
        self.f, self.problem, self.width, self.length = f, problem, width, problem.length
        self.slack = slack * math.sqrt(width / problem.length)
        self.accelerator = accelerator
        self.rows = Rows(exact, problem.length, f.counts.rounds)
        # Only a window shorter than the chain has states enter it, so only there a trajectory is kept for them.
        guess = states if states.shape[1] == self.length > width else None
        self.incoming = IncomingStates(guess, extended)
        self.linear = linear
        self.derivatives = DerivativeSlopes(f, problem, full_jacobian, width) if linear is None else None
        self.trail = None
        if width < self.length and problem.keep == "all":
            begun = states if states.shape[1] in (1, self.length) else problem.x0.flatten(1).unsqueeze(1)
            self.trail = Trail(begun.expand(-1, self.length, -1).clone(memory_format=torch.contiguous_format))
        self.window = Window.opened(problem, states, exact, width)

    def run(self, termination: Termination, limit: int, on_round: Callable[[Progress], None] | None) -> Point:
        """Run rounds until no row is running. The statuses and counts of the rows are in :attr:`rows`."""
        rows, judge = self.rows, Judge(termination, self.window.states.dtype, has_fixed_length=True)
        state: Any = None
        fresh: HostMask | None = None
        self._evaluate(self._after(rows.exact))
        while True:
            report, at = self._inspect(judge)
            self.f.remember(at)
            rows.settle(report, at, self.window, self.f.counts.rounds, over=self.f.counts.rounds >= limit)
            del at  # frees a temporary of the size of the window
            self.f.narrow(rows.running)
            if on_round is not None:
                on_round(rows.progress(self.f.counts.evaluations, report.latest))
            if not rows.running.any():
                return self._answer()
            by, final_to = self._advanced(report)
            carried = self._carried(report, final_to)
            if by.any():
                shift = Shift(self.window.place(by), self.width)
                self._slide(report, shift, by)
                state = None if state is None else self.accelerator.slide(state, shift)
                fresh = None if fresh is None else moved(fresh, by)
            view = self._view(report, carried, fresh, final_to, by)
            state = self.accelerator.init(view) if state is None else state
            proposal, state = self.accelerator.propose(view, state)
            # A history that led to NaN or Inf is of no further use.
            sound = finite_states(proposal).all(dim=1)
            state = self.accelerator.reset(state, ~sound)
            fresh = self._entered(by) if by.any() else None
            wanted = self._move(view, proposal, sound, report, final_to, by)
            del view, proposal, report, carried  # their memory is free while the network runs
            self._evaluate(wanted)

    def _evaluate(self, wanted: HostMask) -> None:
        """Evaluate these predictions in the rows that are running; this is one round if there are any."""
        rows, slots = np.nonzero(wanted & self.rows.running[:, None])
        if self.derivatives is not None:
            self.derivatives.note(wanted)
        size = self.problem.max_batch or max(len(rows), 1)
        self.rows.stepped(rows, self.f.counts.rounds + 1)
        for first in range(0, len(rows), size):
            row, slot = rows[first : first + size], slots[first : first + size]
            x = self.window.inputs(row, slot).view(-1, *self.problem.x0.shape[1:])
            index = self.window.place(self.window.offset[row] + slot)
            values = evaluate_pairs(self.f, self.problem, x, index, row, same_round=first > 0)
            self.window.put(values.flatten(1), row, slot)
        if self.width == 1 < self.length:  # else a state would be final a round before the window slides
            self.window.take_values(self.rows.running & (self.rows.exact == self.window.offset))

    def _inspect(self, judge: Judge) -> tuple[Report, Evaluated]:
        """Carry the defects along the window, judge the rows, and transfer the result to the host, once."""
        window, exact = self.window, self.rows.exact
        values, final = window.values(), window.numbers < exact[:, None]
        done = finite_states(values)
        defects = values - window.states
        sound = finite_states(defects)  # not finite where the value is not; huge finite values can differ by infinity
        changes = self.problem.reference.wide_sweep(_without(defects, ~sound), window.held, window.earlier)
        del defects  # a temporary of the size of the window
        own, change = sizes_to_read(window.states), sizes_to_read(changes)
        # The only wait of a round.
        done_now, sound_now, *told = to_host(done, sound, *own, *change)
        near, sizes = read_relative(window.states, changes, told)
        size, ends, sound_now = sizes[:, -1:], own[0][:, -1:], sound_now | final
        near = np.where(final, 0.0, np.where(np.logical_and.accumulate(sound_now, axis=1), near, np.inf))
        numbers = self._numbers(done_now, near, size)
        status = judge(numbers).codes(len(near))
        with np.errstate(divide="ignore", invalid="ignore"):
            # As the row is judged, or a quiet state could keep it from converging. Without a norm, nothing is quiet.
            allowed = np.where(numbers.scale > 0, judge.tolerance(numbers) / numbers.scale, 0.0)
        quiet_now = near <= self.slack * allowed
        # A view of values that were made for this inspection would keep all of them in memory.
        latest = values[:, -1] if self.problem.memoryless else values[:, -1].clone()
        states = window.states.flatten(1)
        at = Evaluated(states, states, ends, ends, residual=states, numbers=numbers)
        return Report(status, near, quiet_now, done_now, sound_now, latest, changes), at

    def _numbers(self, done: HostMask, errors: NDArray[np.float64], sizes: NDArray[np.float64]) -> Numbers:
        """Return each row's error, the largest of any state, as the judge reads it.

        A row is nonfinite if the value of its first state that is not final is not finite.
        """
        window, rows = self.window, self.rows
        size = np.where(np.isfinite(sizes), sizes, 0.0)
        worst = np.maximum(errors.max(axis=1), rows.final_error)[:, None]
        with np.errstate(invalid="ignore"):  # an infinite change times a norm of 0 would be NaN
            error = np.where(worst > 0, worst * size, 0.0)
        error[~np.isfinite(worst)] = np.inf
        first = rows.exact - window.offset
        slot = np.minimum(first, self.width - 1)[:, None]
        finite = np.take_along_axis(done, slot, axis=1)[:, 0] | (first == self.width)
        return Numbers(error, size, finite)

    def _advanced(self, report: Report) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return by how much each row's window slides, and how many states are final before the next is taken."""
        rows, offset = self.rows, self.window.offset
        later = self._after(rows.exact)
        passed = np.logical_and.accumulate(report.quiet | ~later, axis=1)
        reached = np.maximum(rows.exact, offset + passed.sum(axis=1))
        final_to = np.where(rows.running, reached, rows.exact)
        # A final state is never measured again, so the change that was not applied there is recorded now.
        newly = passed & later & rows.running[:, None]
        rows.final_error = np.maximum(rows.final_error, np.where(newly, report.errors, 0.0).max(axis=1))
        begins = np.where(rows.running, np.minimum(final_to, self.length - self.width), offset)
        return begins - offset, final_to

    def _carried(self, report: Report, final_to: NDArray[np.int64]) -> Float[Tensor, "B 1 d"]:
        """Return what the changes not applied to final states pass on to the first state that is not final.

        Zero where that state is not in the window, and exactly zero where nothing was left unapplied.
        """
        window, slot = self.window, final_to - self.window.offset
        left = (self.rows.final_error > 0) & (slot < self.width)
        assert report.changes is not None
        if not left.any():
            return torch.zeros_like(window.base[:, -1:])
        place = window.place(np.arange(len(slot)) * self.width + np.minimum(slot, self.width - 1))
        change, value, state = (part.flatten(0, 1)[place] for part in (report.changes, window.values(), window.states))
        known = np.take_along_axis(report.finite_defect, np.minimum(slot, self.width - 1)[:, None], axis=1)[:, 0]
        passed = torch.where(window.mask(known & left).unsqueeze(1), change.to(state.dtype) - (value - state), 0.0)
        return passed.unsqueeze(1)

    def _slide(self, report: Report, shift: Shift, by: NDArray[np.int64]) -> None:
        """Slide the windows, and the report along with them; its masks are False for what enters."""
        if self.trail is not None:
            self.trail.store(self.window, by)
        assert report.changes is not None
        self.window.slide(shift, by, report.changes if self.rows.final_error.any() else None)
        if self.derivatives is not None:
            self.derivatives.slide(shift, by)
        report.changes = shift.of_blocks(report.changes)
        report.quiet, report.finite_value, report.finite_defect = (
            moved(mask, by) for mask in (report.quiet, report.finite_value, report.finite_defect)
        )

    def _view(
        self,
        report: Report,
        carried: Float[Tensor, "B 1 d"],
        fresh: HostMask | None,
        final_to: NDArray[np.int64],
        by: NDArray[np.int64],
    ) -> View:
        """Return the window as the accelerator sees it: final states may not change; their change is carried on."""
        window, later = self.window, self._after(final_to)
        made, unfinished = self.derivatives, self._after(self.rows.exact)
        linear = self.linear if made is None else made.at(window, self.rows.running, unfinished)
        assert linear is not None  # one of the two is there
        slot = np.clip(final_to - window.offset, 0, self.width - 1)
        implied = report.changes if linear is self.problem.reference and self.accelerator.takes_plain_round else None
        report.changes = None  # from here on, only the accelerator may need them
        return View(
            window=window,
            known=window.mask(later & ~self._entered(by) & report.finite_defect),
            carried_change=carried,
            begins=window.place(np.arange(len(slot)) * self.width + slot),
            fresh=None if fresh is None else window.mask(fresh),
            linear=linear,
            implied=implied,
        )

    def _move(
        self,
        view: View,
        proposal: Float[Tensor, "B p d"],
        sound: Bool[Tensor, " B"],
        report: Report,
        final_to: NDArray[np.int64],
        by: NDArray[np.int64],
    ) -> HostMask:
        """Set the states of the next round, in the memory of the proposal; return what has to be evaluated.

        A first state whose value is not finite does not take it; the next judgement then ends the row. A state whose
        proposal is not finite takes the state of a plain round instead, or else its value, or else keeps its own.
        """
        window, running = self.window, self.rows.running[:, None]
        later, entered = self._after(final_to) & running, self._entered(by) & running
        first = later & (window.numbers == final_to[:, None]) & ~entered
        plain, moves = first & report.finite_value, later & ~report.quiet & ~entered & ~first
        values = view.values
        # Fallbacks in order: row by row the plain round, then state by state its value, then the state itself.
        states = _chosen(proposal, ~sound.view(-1, 1, 1), values if view.implied is None else view.mapped)
        for other in (values, view.states):
            states = _chosen(states, ~finite_states(states).unsqueeze(2), other)
        states = _chosen(states, window.mask(~moves).unsqueeze(2), view.states)
        rows, slots = np.nonzero(plain)
        places = window.place(rows * self.width + slots)
        taken = values.flatten(0, 1)[places] + view.carried_change.squeeze(1)[window.place(rows)]
        flat = states.flatten(0, 1)
        flat = flat.index_copy(0, places, taken) if torch.is_grad_enabled() else flat.index_copy_(0, places, taken)
        states = flat.view(view.states.shape)
        del values  # a temporary of the size of the window, where steps have a memory
        if by.any():
            states = self.incoming.fill(window, states, entered)
        window.states = states
        self.rows.exact = np.where(self.rows.running, final_to + plain.any(axis=1), self.rows.exact)
        # The input of a prediction is the state before it, one slot to the left.
        changed = moves | plain | entered
        wanted = np.concatenate([np.zeros((len(changed), 1), dtype=np.bool_), changed[:, :-1]], axis=1) | entered
        return wanted & self._after(self.rows.exact)

    def _answer(self) -> Point:
        if self.trail is not None:
            self.trail.store(self.window, np.full(len(self.window.states), self.width))
            return self.rows.answer(self.trail.states, self.trail.values, self.window)
        states, values = self.window.states, self.window.values()
        if self.problem.keep == "last":
            states, values = states[:, -1:].clone(), values[:, -1:].clone()
        return self.rows.answer(states, values, self.window)

    def _after(self, exact: NDArray[np.int64]) -> HostMask:
        """Return the mask of the predictions after the final states."""
        return self.window.numbers >= exact[:, None]

    def _entered(self, by: NDArray[np.int64]) -> HostMask:
        """Return the mask of what entered when the windows slid by ``by``."""
        entered: HostMask = np.arange(self.width) >= self.width - by[:, None]
        return entered


def _without(states: Float[Tensor, "B p d"], mask: Bool[Tensor, "B p"]) -> Float[Tensor, "B p d"]:
    column = mask.unsqueeze(2)
    return states.masked_fill(column, 0.0) if torch.is_grad_enabled() else states.masked_fill_(column, 0.0)


def _chosen(states: Tensor, mask: Bool[Tensor, "B p 1"], other: Tensor) -> Tensor:
    """Return ``other`` where ``mask`` is True, else ``states``: in place unless autograd records."""
    return torch.where(mask, other, states, out=None if torch.is_grad_enabled() else states)
