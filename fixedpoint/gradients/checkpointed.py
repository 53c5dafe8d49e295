r"""Checkpointed unrolled gradient: backpropagation through the iterations, storing only every ``k``-th of them.

The solve runs without autograd. Its steps are then repeated in segments of ``k`` rounds under activation checkpointing
(Griewank & Walther 2000, "Algorithm 799: revolve"; Chen, Xu, Zhang & Guestrin 2016, "Training deep nets with sublinear
memory cost"). Of each segment only the state of the solver before it is stored. The backward pass repeats the steps of
the segment a third time when it reaches it. With ``T`` rounds, the memory is that of ``T / k`` states and of the
activations of ``k`` rounds, instead of ``T`` of both. It is smallest for ``k`` near the square root of ``T``.

The steps are those of the solver. The decisions of the loop between them (which rows end, which are put back to their
best point) are recorded in the solve and applied again. The gradient equals that of ``unrolled`` up to rounding: the
solve writes in place where autograd must not. As there, rows that are solved get the derivative of the fixed point
(``fixedpoint.gradients.completed``). If all rows are solved, no step is repeated.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fixedpoint.core.counts import Decision
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver, stepped
from fixedpoint.core.options import option
from fixedpoint.core.point import Kept
from fixedpoint.core.solution import Solution
from fixedpoint.core.transfer import to_device
from fixedpoint.gradients.completed import completed
from fixedpoint.gradients.estimator import GradientEstimator, with_gradient_of

__all__ = ["CheckpointedUnrolled"]

Carried = tuple[Evaluated, Any, Kept | None]
"""What one segment passes to the next: the point, the solver's state, and the best point of every row so far."""


@dataclass(frozen=True)
class CheckpointedUnrolled(GradientEstimator):
    """Backpropagates through every iteration, keeping one state a segment: three times the steps, less memory.

    It requires a step solver that can be unrolled. The rounds of the second pass are counted; those of the backward
    pass are not. Second derivatives and forward mode raise ``RuntimeError``.
    """

    every: int = option(10, ge=1, help="k: number of rounds in a segment")
    complete: bool = option(
        True, help="also solve for the derivative of solved rows, which may lag behind their values"
    )

    needs = frozenset({"decisions"})

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        again = functools.partial(self._again, f, solution)
        return with_gradient_of(solution.state.detach(), completed(f, solution, again) if self.complete else again())

    def _again(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        """Repeat the steps of the solve while autograd records, and return the resulting state."""
        solver = solution.solver
        assert isinstance(solver, StepSolver)  # no other provides its decisions
        with torch.enable_grad():
            again = _evaluator(f)
            at = solver.begin(again, f.problem.initial())
            carried: Carried = at, solver.init(again, at), again.known
            f.counts.add(again.counts)
            for start in range(0, len(f.decisions), self.every):
                segment = _Segment(solver, f, f.decisions[start : start + self.every])
                carried = checkpoint(segment, carried, use_reentrant=False)
        ended = carried[2]
        assert ended is not None  # the last decision is that the last row ends
        return ended.z


class _Segment:
    """Some rounds of a solve, as a function of the point, the solver's state and the best point before them."""

    def __init__(self, solver: StepSolver[Any], f: Evaluator, decisions: Sequence[Decision]) -> None:
        self.solver, self.f, self.decisions = solver, f, decisions
        self.counted = False

    def __call__(self, carried: Carried) -> Carried:
        at, state, known = carried
        again = _evaluator(self.f)
        again.recall(known)
        for kept, running, rescued, reset in self.decisions:
            again.keep(kept, at)
            if not running.any():
                break
            again.narrow(running)
            if rescued.any():
                at = again.best.where(to_device(rescued, at.z.device), at)
            if reset.any():
                state = self.solver.reset(state, to_device(reset, at.z.device))
            proposal, state = stepped(self.solver, again, at, state)
            at = proposal if isinstance(proposal, Evaluated) else again(proposal)
        if not self.counted:  # the backward pass calls this again
            self.counted = True
            self.f.counts.add(again.counts)
        return at, state, again.known


def _evaluator(f: Evaluator) -> Evaluator:
    again = Evaluator(f.problem, f.yardstick, f.max_batch)
    again.limit, again.tracks_best = f.limit, f.tracks_best
    return again
