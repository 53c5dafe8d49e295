r"""Parareal: the chain is split into blocks, which run in parallel and are joined by coarse jumps in sequence.

Let ``X_m`` be the states at the joints of ``M`` blocks, ``F`` the steps of a block and ``G`` its coarse jump. Then

    X_{m+1} <- F(X_m^old) + G(X_m) - G(X_m^old),      m = 0 .. M - 1,    X_0 = x_0

starting from ``X_{m+1} = G(X_m)`` (Lions, Maday & Turinici 2001; for diffusion models Selvam et al. 2024,
"Self-refining diffusion samplers"). Every sweep makes at least one more block exact, so ``M`` sweeps always suffice.

Every evaluation that has to wait for another is a round. A sweep of ``F`` runs all blocks in parallel and takes as many
rounds as the longest block has steps. A sweep of ``G`` takes one round per coarse step. Nothing is pipelined: a sweep
of ``G`` waits for all of ``F``, although its first block could start sooner. Blocks that are exact are left out of both
sweeps. ``G`` is never applied to the last block, whose own steps follow at once (SRDS ends with it).

A trajectory is judged after a sweep of ``F``: within the blocks it has no defects, and its defects at the joints are
those of ``X``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.calls import evaluate_pairs
from fixedpoint.chains.coarse import evenly_kept
from fixedpoint.chains.problem import ChainProblem, chain_of, require_memoryless
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.outcome import solution_at
from fixedpoint.core.point import Numbers
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Judge, Termination
from fixedpoint.core.transfer import to_device

__all__ = ["Parareal"]


@dataclass(frozen=True)
class Parareal(Solver):
    """Parareal (for diffusion chains: SRDS): fine steps in all blocks at once, coarse jumps in sequence.

    It starts from coarse jumps; a given start is ignored.
    """

    blocks: int | None = option(None, ge=1, help="number of blocks, at most N; default: the root of N, rounded up")
    coarse_steps: int = option(1, ge=1, help="jumps of the coarse sweep in every block, at most its steps")

    needs = frozenset({"chain", "coarse"})
    provides = frozenset({"trajectory"})

    @property
    def known_faults(self) -> dict[str, str]:
        return {"solved-start": "it starts from coarse jumps, whatever the start"}

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        problem = chain_of(f.problem, "parareal")
        require_memoryless(problem, "parareal")
        sweeps = _Sweeps(f, problem, self)
        limit = termination.max_rounds or np.inf
        judge = Judge(termination, z0.dtype, has_fixed_length=True)
        final = np.full(len(z0), Status.RUNNING, dtype=np.int8)
        rounds = np.zeros(len(z0), dtype=np.int64)
        answer: Evaluated | None = None
        while (final == Status.RUNNING).any():
            # Only complete sweeps can be judged, so one that would exceed the limit is not begun.
            if f.counts.rounds + sweeps.next_rounds > limit:
                break
            at = sweeps.fine() if answer is None else sweeps.refined()
            f.remember(at)
            assert at.numbers is not None  # the sweeps read them
            status = judge(at.numbers).codes(len(z0))
            running = final == Status.RUNNING
            answer = at if answer is None else at.where(to_device(running, z0.device), answer)
            final[running] = status[running]
            rounds[running] = f.counts.rounds
            still = final == Status.RUNNING
            if on_round is not None:
                worst = float(np.nan_to_num(f.relative[-1], nan=0.0, posinf=np.inf).max())
                spent = f.counts.evaluations.copy()
                on_round(Progress(f.counts.rounds, int(still.sum()), worst, spent, sweeps.last))
            f.narrow(still)
            sweeps.finish(np.flatnonzero(still))
        if answer is None:  # the limit is too low for the first sweeps: one round judges the start
            answer, _ = f.read(f(z0))
            assert answer.numbers is not None  # it was read
            rounds[:] = f.counts.rounds
            final = judge(answer.numbers).codes(len(z0)).copy()
        final[final == Status.RUNNING] = Status.MAX_ROUNDS
        return solution_at(answer, tuple(Status(int(code)) for code in final), rounds, f, self)


class _Sweeps:
    """The states at the joints and within the blocks, of all rows.

    Sweeps advance only the rows ``rows`` (on the host: ``live``). The first ``exact`` blocks are final.
    """

    def __init__(self, f: Evaluator, problem: ChainProblem, solver: Parareal) -> None:
        length = problem.length
        # The root of N balances the rounds of a fine sweep, N / M, with those of a coarse one, M.
        count = solver.blocks or math.isqrt(length - 1) + 1
        if count > length:
            raise ValueError(f"a chain of {length} steps divides into at most {length} blocks, got blocks={count}")
        self.f = f
        self.problem = problem
        self.starts = np.array([0, *evenly_kept(length, count).tolist()])
        self.sizes = np.diff(self.starts)
        jumps = [evenly_kept(size, min(solver.coarse_steps, size)) for size in self.sizes.tolist()]
        ends = [start + jump for start, jump in zip(self.starts.tolist(), jumps, strict=False)]
        self.coarse = problem.coarse(torch.cat(ends))
        self.jump_starts: list[int] = [0, *np.cumsum([len(jump) for jump in jumps]).tolist()]
        self.exact = 0
        self.live = np.arange(len(problem.x0))
        self.rows = self._place(self.live)
        self.states = problem.x0.unsqueeze(1).repeat(1, length, *[1] * (problem.x0.ndim - 1))
        self.joints = problem.x0.unsqueeze(1).repeat(1, count, *[1] * (problem.x0.ndim - 1))
        self.guesses = self.joints.clone()  # G(X_m) of the last coarse sweep
        self.ended = self.joints.clone()  # F(X_m) of the last fine sweep

    @property
    def last(self) -> Float[Tensor, "B d"]:
        """The last state of every row."""
        return self.states[:, -1].flatten(1)

    @property
    def next_rounds(self) -> int:
        """Rounds of the next two sweeps: the coarse one from the first block that is not exact, and the fine one."""
        return self.jump_starts[-2] - self.jump_starts[self.exact] + int(self.sizes[self.exact :].max())

    def finish(self, live: NDArray[np.int64]) -> None:
        """End a fine sweep: one more block is exact, and only the rows ``live`` continue."""
        self.live, self.rows = live, self._place(live)
        self.exact += 1

    def fine(self) -> Evaluated:
        """Make the coarse start and run the first fine sweep."""
        for m in range(len(self.sizes) - 1):
            self.guesses[:, m] = self._finite(self._jump(m), self.joints[:, m])
            self.joints[:, m + 1] = self.guesses[:, m]
        return self._swept()

    def refined(self) -> Evaluated:
        """Run a coarse sweep, corrected by the fine sweep before it, and then a fine sweep."""
        rows, first = self.rows, self.exact
        self.joints[rows, first] = self.ended[rows, first - 1]
        for m in range(first, len(self.sizes) - 1):
            before = self.guesses[rows, m]
            self.guesses[rows, m] = self._finite(self._jump(m), before)
            joined = self.ended[rows, m] + (self.guesses[rows, m] - before)
            self.joints[rows, m + 1] = self._finite(joined, self.joints[rows, m + 1])
        return self._swept()

    def _jump(self, block: int) -> Float[Tensor, "k *event"]:
        """Return ``G`` of a block, from its joint."""
        x = self.joints[self.rows, block]
        for step in range(self.jump_starts[block], self.jump_starts[block + 1]):
            x = evaluate_pairs(self.f, self.coarse, x, torch.full_like(self.rows, step), self.live)
        return x

    def _swept(self) -> Evaluated:
        """Run ``F`` over all blocks that are not exact in parallel, and judge the resulting trajectory."""
        blocks = np.arange(self.exact, len(self.sizes))
        x = self.joints[self.rows][:, self.exact :]
        sound = torch.ones(self.states.shape[:2], dtype=torch.bool, device=self.rows.device)
        for step in range(self.sizes[self.exact :].max()):
            longer = np.flatnonzero(self.sizes[blocks] > step)
            if len(longer) < len(blocks):
                blocks, x = blocks[longer], x[:, self._place(longer)]
            index = self._place(self.starts[blocks] + step)
            pairs = np.repeat(self.live, len(blocks))
            value = evaluate_pairs(self.f, self.problem, x.flatten(0, 1), index.repeat(len(self.rows)), pairs)
            value = value.unflatten(0, (len(self.rows), len(blocks)))
            finite = value.flatten(2).isfinite().all(dim=2)
            # A block goes on from its last finite state; ``sound`` marks the step as failed.
            x = torch.where(finite.view(*finite.shape, *[1] * (x.ndim - 2)), value, x)
            self.states[self.rows.unsqueeze(1), index] = x
            sound[self.rows.unsqueeze(1), index] = finite
        ends = self._place(self.starts[1:] - 1)
        self.ended[self.rows, self.exact :] = self.states[self.rows][:, ends[self.exact :]]
        return self._judged(sound, ends[:-1])

    def _judged(self, sound: Bool[Tensor, "B N"], ends: Int[Tensor, " M"]) -> Evaluated:
        """Judge the trajectory in which every block starts at its joint, so that it has defects only at the joints.

        The error of a row is infinite while any of its steps is not finite. The row is nonfinite if such a step is
        within the first block that was not exact, since that block starts from an exact state.
        """
        z = self.states.clone()
        z[:, ends] = self.joints[:, 1:]
        at, (sound_now,) = self.f.read(self.f.judged(z.flatten(1), self.states.flatten(1).clone()), sound)
        assert at.numbers is not None  # it was read
        first = slice(*self.starts[self.exact : self.exact + 2].tolist())
        error = np.where(np.all(sound_now, axis=1, keepdims=True), at.numbers.error, np.inf)
        numbers = Numbers(error, at.numbers.scale, np.all(sound_now[:, first], axis=1))
        return replace(at, error=to_device(error, z.device), numbers=numbers)

    def _place(self, host: NDArray[np.int64]) -> Int[Tensor, " n"]:
        return to_device(host, self.problem.x0.device)

    @staticmethod
    def _finite(value: Tensor, instead: Tensor) -> Tensor:
        """Return ``value`` in the rows where it is finite, else ``instead``."""
        finite = value.flatten(1).isfinite().all(dim=1)
        return torch.where(finite.view(-1, *[1] * (value.ndim - 1)), value, instead)
