r"""Unrolled gradient in segments: backpropagation through the iterations, of which only every ``k``-th is kept.

The solve runs without autograd. Then its steps are taken again in segments of ``k`` rounds under activation
checkpointing (Griewank & Walther 2000, "Algorithm 799: revolve"; Chen, Xu, Zhang & Guestrin 2016, "Training deep nets
with sublinear memory cost"): of each segment only the solver's state before it is held, and the backward
pass takes the segment's steps a third time when it gets there. With ``T`` rounds, memory goes like ``T / k`` states and
the activations of ``k`` rounds instead of ``T`` of both; ``k`` about the root of ``T`` is least.

The steps are the solver's own, and what the loop decided between them (which row has ended, which is put back to its
best point) is what it decided in the solve. The gradient is that of ``unrolled``, to rounding: the solve writes in
place where autograd must not. As there, rows that are solved get the derivative of the fixed point
(``fixedpoint.gradients.completed``), and where all are, no step is taken again.
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
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option
from fixedpoint.core.point import Point
from fixedpoint.core.solution import Solution
from fixedpoint.core.transfer import to_device
from fixedpoint.gradients.completed import completed
from fixedpoint.gradients.estimator import GradientEstimator, with_gradient_of

__all__ = ["CheckpointedUnrolled"]

Carried = tuple[Evaluated, Any, Point | None]


@dataclass(frozen=True)
class CheckpointedUnrolled(GradientEstimator):
    """Backpropagates through every iteration, keeping one state a segment: three times the steps, less memory.

    For step solvers that can be unrolled. The rounds of the second pass are counted, those of the backward pass are
    not. Second derivatives and forward mode are refused.
    """

    every: int = option(10, ge=1, help="k: rounds of a segment")
    complete: bool = option(True, help="go on with the derivative of solved rows until it is solved, too")

    needs = frozenset({"decisions"})

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        again = functools.partial(self._again, f, solution)
        return with_gradient_of(solution.state.detach(), completed(f, solution, again) if self.complete else again())

    def _again(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        """The state, by the steps of the solve taken again."""
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
    """Some rounds of a solve: from a point, a solver's state and the best point so far to those after them."""

    def __init__(self, solver: StepSolver[Any], f: Evaluator, decisions: Sequence[Decision]) -> None:
        self.solver, self.f, self.decisions = solver, f, decisions
        self.counted = False

    def __call__(self, carried: Carried) -> Carried:
        at, state, known = carried
        again = _evaluator(self.f)
        again.recall(known)
        for kept, running, rescued in self.decisions:
            again.keep(kept, at)
            if not running.any():
                break
            again.narrow(running)
            if rescued.any():
                rows = to_device(rescued, at.z.device)
                at = again.best.where(rows, at)
                state = self.solver.reset(state, rows)
            proposal, state = self.solver.step(again, at, state)
            at = proposal if isinstance(proposal, Evaluated) else again(proposal)
        if not self.counted:  # the backward pass comes here again
            self.counted = True
            self.f.counts.add(again.counts)
        return at, state, again.known


def _evaluator(f: Evaluator) -> Evaluator:
    again = Evaluator(f.problem, f.yardstick, f.max_batch)
    again.limit, again.tracks_best = f.limit, f.tracks_best
    return again
