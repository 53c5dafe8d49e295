r"""Runs the rounds of a joint solve of a chain, in a window per row that slides along the chain.

For every row the window holds states ``offset .. offset + p``. A round evaluates the steps whose input has changed and
carries the defects along the window. From the change ``delta_i`` that the defects imply at every state it decides what
happens to that state:

- States at the front of the window with ``||delta_i|| <= slack * tolerance`` become *final*: they keep their value and
  are never changed again. The window slides up to them.
- The next state takes its plain step, plus the change still implied at the last final state, and becomes final too. So
  every round makes at least one state final, and ``N`` rounds are enough for any preconditioner and accelerator.
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
from fixedpoint.chains.joint.accelerator import Accelerator, Window
from fixedpoint.chains.joint.buffers import Buffers, Trail
from fixedpoint.chains.joint.incoming import IncomingStates
from fixedpoint.chains.joint.inspection import HostMask, RoundInspector, RoundReport, moved
from fixedpoint.chains.joint.rows import Rows
from fixedpoint.chains.joint.shift import Shift
from fixedpoint.chains.joint.slopes import Slopes
from fixedpoint.chains.measure import finite_states
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.slope.linear import Band, LinearPart
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.point import Point
from fixedpoint.core.progress import Progress
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device

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
        ``p``, the number of steps in the window.
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
        self.f = f
        self.problem = problem
        self.width = width
        self.slack = slack * math.sqrt(width / problem.length)
        self.accelerator = accelerator
        self.length = problem.length
        self.rows = Rows(exact, problem.length, f.counts.rounds)
        # Only a window shorter than the chain has states enter it, so only there a trajectory is kept for them.
        guess = states if states.shape[1] == self.length > width else None
        self.incoming = IncomingStates(problem, guess, extended)
        self.slopes = Slopes(f, problem, linear, full_jacobian=full_jacobian, width=width)
        self.trail = self._trail(states) if width < self.length and problem.keep == "all" else None
        self.buffers = self._opened(states, exact)

    def run(self, termination: Termination, limit: int, on_round: Callable[[Progress], None] | None) -> Point:
        """Run rounds until no row is running. The statuses and counts of the rows are in :attr:`rows`."""
        rows = self.rows
        inspector = RoundInspector(termination, self.buffers.values.dtype, self.slack)
        state: Any = None
        fresh: HostMask | None = None
        self._evaluate(self._after(rows.exact))
        while True:
            report, at = inspector.inspect(self.buffers, rows.exact, rows.final_error)
            self.f.remember(at)
            rows.settle(report, at, self.buffers, self.f.counts.rounds, over=self.f.counts.rounds >= limit)
            del at  # frees a temporary of the size of the window
            self.f.narrow(rows.running)
            if on_round is not None:
                on_round(rows.progress(self.f.counts.evaluations, self.buffers.values[:, -1]))
            if not rows.running.any():
                break
            by, final_to = self._advanced(report)
            carried = self._carried_change(report.changes, final_to)
            if by.any():
                shift = Shift(self.buffers.place(by), self.width)
                report = report.slid(shift, by)
                state = None if state is None else self.accelerator.slide(state, shift)
                fresh = None if fresh is None else moved(fresh, by)
                self._slide(shift, by)
            window = self._window(report, carried, fresh, final_to, by)
            state = self.accelerator.init(window) if state is None else state
            proposal, state = self.accelerator.propose(window, state)
            # A history that led to NaN or Inf is of no further use.
            sound = finite_states(proposal).all(dim=1)
            state = self.accelerator.reset(state, ~sound)
            fresh = self._entered(by) if by.any() else None
            wanted = self._move(window, proposal, sound, report, final_to, by)
            del window, proposal, report, carried  # their memory is free while the network runs
            self._evaluate(wanted)
        return self._answer()

    def _trail(self, states: Float[Tensor, "B n d"]) -> Trail:
        begun = states if states.shape[1] in (1, self.length) else self.problem.x0.flatten(1).unsqueeze(1)
        return Trail(begun.expand(-1, self.length, -1).clone(memory_format=torch.contiguous_format))

    def _opened(self, states: Float[Tensor, "B n d"], exact: NDArray[np.int64]) -> Buffers:
        """Return the buffers of the first window."""
        # Clones, since rounds write into the buffers.
        x0 = self.problem.x0.flatten(1)
        if states.shape[1] < self.length:  # one value for all states, or only the first p
            held = states.expand(-1, self.width, -1).clone(memory_format=torch.contiguous_format)
            return Buffers(x0, held, held.clone(), np.zeros(len(x0), dtype=np.int64))
        if self.width == self.length:
            return Buffers(x0, states.clone(), states.clone(), np.zeros(len(x0), dtype=np.int64))
        offset = np.minimum(exact, self.length - self.width)
        rows = np.arange(len(x0)) * (self.length + 1)
        places = to_device((rows + offset)[:, None] + np.arange(self.width + 1), x0.device)
        held = torch.cat([x0.unsqueeze(1), states], dim=1).flatten(0, 1)[places]
        return Buffers(held[:, 0].clone(), held[:, 1:].clone(), held[:, 1:].clone(), offset)

    def _after(self, exact: NDArray[np.int64]) -> HostMask:
        """Return the mask of the steps after the final states."""
        return self.buffers.numbers >= exact[:, None]

    def _evaluate(self, wanted: HostMask) -> None:
        """Evaluate these steps in the rows that are running; this is one round if there are any."""
        rows, slots = np.nonzero(wanted & self.rows.running[:, None])
        self.slopes.note(wanted)
        size = self.problem.max_batch or max(len(rows), 1)
        self.rows.stepped(rows, self.f.counts.rounds + 1)
        for first in range(0, len(rows), size):
            row, slot = rows[first : first + size], slots[first : first + size]
            x = self.buffers.before(row, slot).view(-1, *self.problem.x0.shape[1:])
            index = self.buffers.place(self.buffers.offset[row] + slot)
            values = evaluate_pairs(self.f, self.problem, x, index, row, same_round=first > 0)
            self.buffers.put(values.flatten(1), row, slot)

    def _advanced(self, report: RoundReport) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return by how many steps each row's window slides, and how many states are final before its plain step."""
        later = self._after(self.rows.exact)
        passed = np.logical_and.accumulate(report.quiet | ~later, axis=1)
        rows = self.rows
        reached = np.maximum(rows.exact, self.buffers.offset + passed.sum(axis=1))
        final_to = np.where(rows.running, reached, rows.exact)
        # A final state is never measured again, so the change that was not applied there is recorded now.
        newly = passed & later & rows.running[:, None]
        rows.final_error = np.maximum(rows.final_error, np.where(newly, report.errors, 0.0).max(axis=1))
        offset = np.where(self.rows.running, np.minimum(final_to, self.length - self.width), self.buffers.offset)
        return offset - self.buffers.offset, final_to

    def _carried_change(self, changes: Float[Tensor, "B p d"], final_to: NDArray[np.int64]) -> Float[Tensor, "B 1 d"]:
        """Return the change implied at the last final state, shape ``(B, 1, d)``; zero if no final state is held."""
        slot = final_to - self.buffers.offset - 1
        found = changes.flatten(0, 1)[self.buffers.place(np.arange(len(final_to)) * self.width + np.maximum(slot, 0))]
        kept = self.buffers.mask(slot >= 0).unsqueeze(1)
        return torch.where(kept, found, 0.0).to(self.buffers.states.dtype).unsqueeze(1)

    def _slide(self, shift: Shift, by: NDArray[np.int64]) -> None:
        if self.trail is not None:
            self.trail.store(self.buffers, by)
        self.buffers.slide(shift, by)
        self.slopes.slide(shift, moved(self.slopes.stale, by))

    def _window(
        self,
        report: RoundReport,
        carried: Float[Tensor, "B 1 d"],
        fresh: HostMask | None,
        final_to: NDArray[np.int64],
        by: NDArray[np.int64],
    ) -> Window:
        """Return the window for the accelerator: final states may not change; their implied change is carried on."""
        later = self._after(final_to)
        return Window(
            base=self.buffers.base,
            states=self.buffers.states,
            outcomes=self.buffers.values,
            known=self.buffers.mask(later & ~self._entered(by) & report.finite_defect),
            carried_change=carried,
            begins=self.buffers.mask(later & (self.buffers.numbers == final_to[:, None])),
            first=self.buffers.place(self.buffers.offset) if self.width < self.length else None,
            fresh=None if fresh is None else self.buffers.mask(fresh),
            linear=self.slopes.at(self.buffers, self.rows.running, self._after(self.rows.exact)),
            implied=report.changes,
        )

    def _move(
        self,
        window: Window,
        proposal: Float[Tensor, "B p d"],
        sound: Bool[Tensor, " B"],
        report: RoundReport,
        final_to: NDArray[np.int64],
        by: NDArray[np.int64],
    ) -> HostMask:
        """Set the states of the next round, in the memory of the proposal; return the steps whose input has changed.

        A plain step that is not finite is not taken; the next judgement then ends the row. A state whose proposal is
        not finite takes the state of a plain round instead, or else the value of its own step, or else keeps its value.
        """
        running = self.rows.running[:, None]
        later, entered = self._after(final_to) & running, self._entered(by) & running
        first = later & (self.buffers.numbers == final_to[:, None]) & ~entered
        plain, moves = first & report.finite_value, later & ~report.quiet & ~entered & ~first
        # Fallbacks in order: row by row the plain round, then state by state the step's value, then the state itself.
        states = _chosen(proposal, ~sound.view(-1, 1, 1), window.mapped)
        for other in (window.outcomes, window.states):
            states = _chosen(states, ~finite_states(states).unsqueeze(2), other)
        states = _chosen(states, self.buffers.mask(~moves).unsqueeze(2), window.states)
        rows, slots = np.nonzero(plain)
        places = self.buffers.place(rows * self.width + slots)
        taken = window.outcomes.flatten(0, 1)[places] + window.carried_change.squeeze(1)[self.buffers.place(rows)]
        states = states.flatten(0, 1).index_copy(0, places, taken) if torch.is_grad_enabled() else states
        if not torch.is_grad_enabled():
            states.view(-1, states.shape[2]).index_copy_(0, places, taken)
        states = states.view(window.states.shape)
        if by.any():
            states = self.incoming.fill(self.buffers, states, entered)
        self.buffers.states = states
        self.rows.exact = np.where(self.rows.running, final_to + plain.any(axis=1), self.rows.exact)
        # The input of a step is the state before it, one slot to the left.
        changed = moves | plain | entered
        wanted = np.concatenate([np.zeros((len(changed), 1), dtype=np.bool_), changed[:, :-1]], axis=1) | entered
        return wanted & self._after(self.rows.exact)

    def _answer(self) -> Point:
        states, values = self.buffers.states, self.buffers.values
        if self.trail is not None:
            self.trail.store(self.buffers, np.full(len(states), self.width))
            states, values = self.trail.states, self.trail.values
        elif self.problem.keep == "last":
            states, values = states[:, -1:].clone(), values[:, -1:].clone()
        return self.rows.answer(states, values, self.buffers)

    def _entered(self, by: NDArray[np.int64]) -> HostMask:
        """Return the mask of the steps that entered when the windows slid ``by`` steps."""
        entered: HostMask = np.arange(self.width) >= self.width - by[:, None]
        return entered


def _chosen(states: Tensor, mask: Bool[Tensor, "B p 1"], other: Tensor) -> Tensor:
    """Return ``other`` where ``mask`` is True, else ``states``: in place unless autograd records."""
    return torch.where(mask, other, states, out=None if torch.is_grad_enabled() else states)
