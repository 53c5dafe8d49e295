r"""The rounds of a joint solve of a chain, in a window that slides along it, another one for every row.

States ``offset .. offset + p`` of a row are held. A round evaluates the steps whose input has moved, carries the
defects along the window, and from the change ``delta_i`` that they imply at every state decides:

- States from the first one on that would hardly change, ``||delta_i|| <= slack * tolerance``, are *final*: they stay as
  they are. The window slides up to them.
- The next state takes its plain step from them, with what they would still have changed, and is final, too. So every
  round makes at least one state final: ``N`` rounds are enough, whatever preconditioner and accelerator do.
- Other states that would hardly change are *quiet*: they are left where they are, and their steps, evaluated there,
  need no evaluation. Nothing is lost: their defects remain, are swept on with the others', and move the state once
  they add up.
- All others move to where the accelerator wants them.

Every defect is thus that of the states as they are, never of states moved since, and what is returned needs no
verification. The error of a row is the largest change implied anywhere, at final states as they were left.

The host decides from one transfer a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.accelerator import Accelerator, Window
from fixedpoint.chains.buffers import Buffers, Trail
from fixedpoint.chains.chain import ChainProblem
from fixedpoint.chains.linear import Band, LinearPart
from fixedpoint.chains.measure import finite_states, relative, state_norms
from fixedpoint.chains.scan import running_sums
from fixedpoint.chains.slopes import Slopes
from fixedpoint.chains.tails import Tails
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import Progress
from fixedpoint.core.point import Point
from fixedpoint.core.shift import Shift
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Judge, Termination

__all__ = ["Engine"]

HostMask = NDArray[np.bool_]


class Engine:
    """One solve.

    Parameters
    ----------
    f
        The evaluator of the chain.
    problem
        The chain.
    states
        Shape ``(B, N, d)``: what the states start from; ``(B, p, d)``: the first ones alone, none of which is left out;
        ``(B, 1, d)``: the same for all.
    exact
        Shape ``(B,)``: how many of them are final.
    width
        ``p``, steps of the window.
    slack
        Share of the tolerance by which states may be left.
    accelerator
        What proposes.
    linear
        The linear part where it is known beforehand; else ``whole`` says which derivatives make it.
    extended
        Whether states that come into the window start from the jump of the last step before them.
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
        whole: bool = False,
        extended: bool = False,
    ) -> None:
        self.f = f
        self.problem = problem
        self.width = width
        self.slack = slack
        self.accelerator = accelerator
        self.length = problem.length
        self.exact = exact
        self.rows = len(states)
        self.device = states.device
        self.slots = np.arange(width)[None, :]
        guess = states if states.shape[1] == self.length > width else None
        self.tails = Tails(problem, guess, extended)
        self.slopes = Slopes(f, problem, linear, whole=whole, width=width)
        self.trail = self._trail(states) if width < self.length and problem.keep == "all" else None
        self.buffers = self._opened(states)
        self.kept: tuple[Tensor, Tensor, Tensor] | None = None
        self.left = np.zeros(self.rows)  # the largest change implied at final states
        self.running = np.ones(self.rows, dtype=np.bool_)
        self.latest = np.full(self.rows, f.counts.rounds, dtype=np.int64)  # the last round in which a row took steps
        self.step_errors: list[NDArray[np.float32]] = []
        self.offsets: list[NDArray[np.int64]] = []
        self.numbers: list[int] = []

    def run(
        self, termination: Termination, limit: int, on_round: Callable[[Progress], None] | None
    ) -> tuple[Point, tuple[Status, ...], NDArray[np.int64]]:
        """Rounds until no row is running.

        Returns
        -------
        The answer, the status and the rounds of every row.
        """
        judge = Judge(termination, self.buffers.values.dtype, lasting=True)
        final = np.full(self.rows, Status.RUNNING, dtype=np.int8)
        rounds = np.zeros(self.rows, dtype=np.int64)
        state: Any = None
        fresh: HostMask | None = None
        self._evaluate(self._after(self.exact))
        while True:
            seen = self._judged(judge)
            rounds[self.running] = self.latest[self.running]
            final[self.running] = seen.status[self.running]
            spent = (self.f.counts.rounds >= limit) | (self.exact == self.length)
            final[(final == Status.RUNNING) & spent] = Status.MAX_ROUNDS
            self._note(seen.errors)
            self.running = final == Status.RUNNING
            self.f.narrow(self.running)
            if on_round is not None:
                on_round(self._progress())
            if not self.running.any():
                break
            by, final_to = self._advanced(seen)
            left = self._left(seen.changes, final_to)
            if by.any():
                shift = Shift(self._place(by), self.width)
                seen = seen.slid(shift, by)
                state = None if state is None else self.accelerator.slide(state, shift)
                fresh = None if fresh is None else moved(fresh, by)
                self._slide(shift, by)
            window = self._window(seen, left, fresh, final_to, by)
            state = self.accelerator.init(window) if state is None else state
            proposal, state = self.accelerator.propose(window, state)
            sound = finite_states(proposal).all(dim=1)
            state = self.accelerator.reset(state, ~sound)
            fresh = self._entered(by) if by.any() else None
            wanted = self._move(window, proposal, sound, seen, final_to, by)
            del window, proposal, seen, left
            self._evaluate(wanted)
        return self._answer(), tuple(Status(int(code)) for code in final), rounds

    @property
    def offset(self) -> NDArray[np.int64]:
        """Shape ``(B,)``: the number of the first step in the window."""
        return self.buffers.offset

    def _trail(self, states: Float[Tensor, "B n d"]) -> Trail:
        begun = states if states.shape[1] in (1, self.length) else self.problem.x0.flatten(1).unsqueeze(1)
        return Trail(begun.expand(-1, self.length, -1).clone(memory_format=torch.contiguous_format))

    def _opened(self, states: Float[Tensor, "B n d"]) -> Buffers:
        """The first window."""
        x0 = self.problem.x0.flatten(1)
        if states.shape[1] < self.length:  # one for all of them, or the first ones
            held = states.expand(-1, self.width, -1).clone(memory_format=torch.contiguous_format)
            return Buffers(x0, held, held.clone(), np.zeros(self.rows, dtype=np.int64))
        if self.width == self.length:
            return Buffers(x0, states.clone(), states.clone(), np.zeros(self.rows, dtype=np.int64))
        offset = np.minimum(self.exact, self.length - self.width)
        rows = np.arange(self.rows) * (self.length + 1)
        places = torch.from_numpy((rows + offset)[:, None] + np.arange(self.width + 1)).to(self.device)
        held = torch.cat([x0.unsqueeze(1), states], dim=1).flatten(0, 1)[places]
        return Buffers(held[:, 0].clone(), held[:, 1:].clone(), held[:, 1:].clone(), offset)

    def _after(self, exact: NDArray[np.int64]) -> HostMask:
        """The steps of the window that follow on the final states."""
        return self.offset[:, None] + self.slots >= exact[:, None]

    def _evaluate(self, wanted: HostMask) -> None:
        """Take these steps, of the rows that are running: one round, if there are any."""
        rows, slots = np.nonzero(wanted & self.running[:, None])
        self.slopes.note(wanted)
        size = self.problem.max_batch or max(len(rows), 1)
        self.latest[rows] = self.f.counts.rounds + 1
        for first in range(0, len(rows), size):
            row, slot = rows[first : first + size], slots[first : first + size]
            x = self.buffers.before(row, slot).view(-1, *self.problem.x0.shape[1:])
            index = self._place(self.offset[row] + slot)
            values = self.f.pairs(self.problem, x, index, row, same_round=first > 0)
            self.buffers.put(values.flatten(1), row, slot)

    def _judged(self, judge: Judge) -> Seen:
        """What the round has found, all of it that the host is to know in one transfer."""
        final = self._mask(~self._after(self.exact))
        sizes, done = state_norms(self.buffers.states), finite_states(self.buffers.values)
        defects = self.buffers.values - self.buffers.states
        sound = (finite_states(defects) & done) | final  # a step from a huge state may be finite, its defect not
        changes = running_sums(_without(defects, ~sound | final))
        errors = torch.where(sound.cumprod(dim=1).bool(), relative(changes, sizes), torch.inf)
        at = self._measured(done, errors, sizes)
        self.f.remember(at)
        self._keep(at)
        status, _ = judge(at)
        own = judge.tolerance(at, sizes) / sizes  # of the size of every state; one without size is never quiet
        quiet = errors <= self.slack * own
        told = torch.cat([status.double().unsqueeze(1), errors, quiet, done, sound], dim=1).cpu().numpy()
        ended, near, *masks = np.split(told, 1 + self.width * np.arange(4), axis=1)
        status_now = ended[:, 0].astype(np.int8)
        short = self.offset + self.width < self.length  # its last state is not known
        status_now[(status_now == Status.CONVERGED) & short] = Status.RUNNING
        quiet_now, done_now, sound_now = (mask > 0 for mask in masks)
        return Seen(status_now, near, quiet_now, done_now, sound_now, changes)

    def _measured(
        self, done: Bool[Tensor, "B p"], errors: Float[Tensor, "B p"], sizes: Float[Tensor, "B p"]
    ) -> Evaluated:
        """The row's error: the largest of any state. It is lost where the first step at a final state is not finite."""
        size = torch.where(sizes[:, -1:].isfinite(), sizes[:, -1:], 0.0)
        worst = torch.maximum(errors.amax(dim=1), torch.from_numpy(self.left).to(self.device)).unsqueeze(1)
        error = torch.where(worst > 0, worst * size, 0.0).masked_fill(~worst.isfinite(), torch.inf)
        first = self._place(np.minimum(self.exact - self.offset, self.width - 1)).unsqueeze(1)
        finite = done.gather(1, first).squeeze(1) | self._mask(self.exact == self.length)
        states = self.buffers.states.flatten(1)
        return Evaluated(states, self.buffers.values.flatten(1), error, size, finite, residual=states)

    def _advanced(self, seen: Seen) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """By how much each row's window slides, and up to which state it is final before the next plain step."""
        later = self._after(self.exact)
        passed = np.logical_and.accumulate(seen.quiet | ~later, axis=1)
        final_to = np.where(self.running, np.maximum(self.exact, self.offset + passed.sum(axis=1)), self.exact)
        newly = passed & later & self.running[:, None]
        self.left = np.maximum(self.left, np.where(newly, seen.errors, 0.0).max(axis=1))
        offset = np.where(self.running, np.minimum(final_to, self.length - self.width), self.offset)
        return offset - self.offset, final_to

    def _left(self, changes: Float[Tensor, "B p d"], final_to: NDArray[np.int64]) -> Float[Tensor, "B 1 d"]:
        """What the last final state would still have changed."""
        slot = final_to - self.offset - 1
        found = changes.flatten(0, 1)[self._place(np.arange(self.rows) * self.width + np.maximum(slot, 0))]
        kept = self._mask(slot >= 0).unsqueeze(1)
        return torch.where(kept, found, 0.0).to(self.buffers.states.dtype).unsqueeze(1)

    def _slide(self, shift: Shift, by: NDArray[np.int64]) -> None:
        if self.trail is not None:
            self.trail.store(self.buffers, by)
        self.buffers.slide(shift, by)
        self.slopes.slide(shift, moved(self.slopes.stale, by))

    def _window(
        self,
        seen: Seen,
        left: Float[Tensor, "B 1 d"],
        fresh: HostMask | None,
        final_to: NDArray[np.int64],
        by: NDArray[np.int64],
    ) -> Window:
        """What the accelerator is shown: nothing is to change up to the final states, whose change is handed on."""
        later = self._after(final_to)
        return Window(
            base=self.buffers.base,
            states=self.buffers.states,
            outcomes=self.buffers.values,
            known=self._mask(later & ~self._entered(by) & seen.sound),
            left=left,
            begins=self._mask(later & (self.offset[:, None] + self.slots == final_to[:, None])),
            first=self._place(self.offset) if self.width < self.length else None,
            fresh=None if fresh is None else self._mask(fresh),
            linear=self.slopes.at(self.buffers, self.running, self._after(self.exact)),
            implied=seen.changes,
        )

    def _move(
        self,
        window: Window,
        proposal: Float[Tensor, "B p d"],
        sound: Bool[Tensor, " B"],
        seen: Seen,
        final_to: NDArray[np.int64],
        by: NDArray[np.int64],
    ) -> HostMask:
        """Make the states those of the next round, in the memory of the proposal; the steps whose input is another.

        A first step that is not finite, at its final state, is not taken: it stays for the judge. A state whose
        proposal is not finite becomes that of a plain round, or of its own step.
        """
        later, entered = self._after(final_to) & self.running[:, None], self._entered(by) & self.running[:, None]
        first = later & (self.offset[:, None] + self.slots == final_to[:, None]) & ~entered
        plain, moves = first & seen.done, later & ~seen.quiet & ~entered & ~first
        states = _chosen(proposal, ~sound.view(-1, 1, 1), window.mapped)
        for other in (window.outcomes, window.states):
            states = _chosen(states, ~finite_states(states).unsqueeze(2), other)
        states = _chosen(states, self._mask(~moves).unsqueeze(2), window.states)
        rows, slots = np.nonzero(plain)
        places = self._place(rows * self.width + slots)
        taken = window.outcomes.flatten(0, 1)[places] + window.left.squeeze(1)[self._place(rows)]
        states = states.flatten(0, 1).index_copy(0, places, taken) if torch.is_grad_enabled() else states
        if not torch.is_grad_enabled():
            states.view(-1, states.shape[2]).index_copy_(0, places, taken)
        states = states.view(window.states.shape)
        if by.any():
            states = self.tails.fill(self.buffers, states, entered)
        self.buffers.states = states
        self.exact = np.where(self.running, final_to + plain.any(axis=1), self.exact)
        changed = moves | plain | entered
        wanted = np.concatenate([np.zeros((self.rows, 1), dtype=np.bool_), changed[:, :-1]], axis=1) | entered
        return wanted & self._after(self.exact)

    def _keep(self, at: Evaluated) -> None:
        """The measure of every row, as it is when the row ends."""
        if self.kept is None:
            self.kept = at.measure
            return
        mask, (error, scale, finite) = self._mask(self.running), self.kept
        column = mask.unsqueeze(1)
        error, scale = torch.where(column, at.error, error), torch.where(column, at.scale, scale)
        self.kept = error, scale, torch.where(mask, at.finite, finite)

    def _answer(self) -> Point:
        assert self.kept is not None  # at least one round was judged
        error, scale, finite = self.kept
        short = self.offset + self.width < self.length
        error = error.masked_fill(self._mask(short).unsqueeze(1), torch.inf)  # its last state is not known
        states, values = self.buffers.states, self.buffers.values
        if self.trail is not None:
            self.trail.store(self.buffers, np.full(self.rows, self.width))
            states, values = self.trail.states, self.trail.values
        elif self.problem.keep == "last":
            states, values = states[:, -1:].clone(), values[:, -1:].clone()
        return Point(states.flatten(1), values.flatten(1), error, scale, finite)

    def _note(self, errors: NDArray[np.float64]) -> None:
        with np.errstate(over="ignore"):
            self.step_errors.append(np.where(self.running[:, None], errors, np.nan).astype(np.float32))
        self.offsets.append(self.offset)
        self.numbers.append(self.f.counts.rounds)

    def _progress(self) -> Progress:
        worst = self.step_errors[-1]
        known = worst[~np.isnan(worst)]
        error = float(known.max()) if len(known) else 0.0
        last = self.buffers.values[:, -1]
        spent = self.f.counts.evaluations.copy()
        return Progress(self.f.counts.rounds, int(self.running.sum()), error, spent, last)

    def _entered(self, by: NDArray[np.int64]) -> HostMask:
        """The steps that have come into the window."""
        entered: HostMask = self.slots >= self.width - by[:, None]
        return entered

    def _mask(self, host: HostMask) -> Bool[Tensor, "B *p"]:
        return torch.from_numpy(np.ascontiguousarray(host)).to(self.device, non_blocking=True)

    def _place(self, host: NDArray[np.int64]) -> Int[Tensor, " n"]:
        return self.buffers.place(host)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a round has found: of the rows, and of every step in the window.

    ``errors``: the relative change implied; ``quiet``: that is next to none; ``done``: the step is finite; ``sound``:
    so is its defect. ``changes``, on the device: the changes implied.
    """

    status: NDArray[np.int8]
    errors: NDArray[np.float64]
    quiet: HostMask
    done: HostMask
    sound: HostMask
    changes: Float[Tensor, "B p d"]

    def slid(self, shift: Shift, by: NDArray[np.int64]) -> Seen:
        """The same in the window where it has slid to; nothing is known of what comes in."""
        quiet, done, sound = (moved(mask, by) for mask in (self.quiet, self.done, self.sound))
        return Seen(self.status, self.errors, quiet, done, sound, shift.of_blocks(self.changes))


def moved(mask: HostMask, by: NDArray[np.int64]) -> HostMask:
    """A mask of the window's slots, shifted with it."""
    places = np.arange(mask.shape[1])[None, :] + by[:, None]
    inside = places < mask.shape[1]
    found: HostMask = np.take_along_axis(mask, np.minimum(places, mask.shape[1] - 1), axis=1) & inside
    return found


def _without(states: Float[Tensor, "B p d"], mask: Bool[Tensor, "B p"]) -> Float[Tensor, "B p d"]:
    column = mask.unsqueeze(2)
    return states.masked_fill(column, 0.0) if torch.is_grad_enabled() else states.masked_fill_(column, 0.0)


def _chosen(states: Tensor, mask: Bool[Tensor, "B p 1"], other: Tensor) -> Tensor:
    """``other`` where the mask says so; in the memory of the states unless gradients flow."""
    return torch.where(mask, other, states, out=None if torch.is_grad_enabled() else states)
