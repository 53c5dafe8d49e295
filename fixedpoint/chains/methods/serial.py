"""The serial solver: takes the steps of a chain one after another; the reference for joint solvers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.calls import evaluate_pairs
from fixedpoint.chains.problem import ChainProblem, chain_of
from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.outcome import solution_at
from fixedpoint.core.progress import Progress
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import Status
from fixedpoint.core.statuses import Statuses
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device

__all__ = ["Serial", "SerialState", "iterate_steps"]


@dataclass(frozen=True)
class Serial(Solver):
    """Runs a chain step by step: N rounds of one evaluation each, exact by construction.

    The termination is ignored. A row keeps its last finite state once a step returns NaN or Inf.
    """

    needs = frozenset({"chain"})
    provides = frozenset({"trajectory"})

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        problem = chain_of(f.problem, "the serial solver")
        states: list[Tensor] = []
        for at in iterate_steps(f, problem, problem.x0, np.zeros(len(problem.x0), dtype=np.int64)):
            if problem.keep == "last":
                states.clear()
            states.append(at.x)
            if on_round is not None:
                on_round(Progress(at.step + 1, running=len(at.x), relative_error=float("nan"), latest=at.x.flatten(1)))
        x, sound = at.x, at.sound
        z = torch.stack(states, dim=1).flatten(1)
        lost = _lost(z, row_norms(x.flatten(1)).unsqueeze(1), sound)
        lost, (good,) = f.read(lost, sound)
        f.remember(lost)
        status = Statuses(np.where(good, np.int8(Status.CONVERGED), np.int8(Status.NONFINITE)))
        rounds = np.full(len(x), f.counts.rounds, dtype=np.int64)
        return solution_at(lost, status, rounds, f, self)


class SerialState(NamedTuple):
    """The states after a step.

    Attributes
    ----------
    step
        The number of the step, from 0 to ``N - 1``.
    rows
        The numbers of the rows that took it, on the host.
    x
        Shape ``(B, *event)``: the states of all rows.
    sound
        Shape ``(B,)``: True for rows whose steps were all finite; the others keep their last finite state.
    """

    step: int
    rows: NDArray[np.int64]
    x: Float[Tensor, "B *event"]
    sound: Bool[Tensor, " B"]


def iterate_steps(
    f: Evaluator, problem: ChainProblem, x: Float[Tensor, "B *event"], first: NDArray[np.int64]
) -> Iterator[SerialState]:
    """Take the steps of a chain one after another, one round per step, and yield the states after each.

    Parameters
    ----------
    f
        The evaluator, which counts the steps.
    problem
        The chain.
    x
        Shape ``(B, *event)``: the input of every row's first step.
    first
        Shape ``(B,)``: the number of that step; ``N`` for rows that take none. A chain with a memory begins at 0.
    """
    inputs: list[Tensor] = []
    predictions: list[Tensor] = []
    history, last = problem.recurrence.history, int(first.max())
    sound = torch.ones(len(x), dtype=torch.bool, device=x.device)
    rows = np.arange(len(x))
    failed = False  # known on the host only where that takes no wait
    for step in range(int(first.min()), problem.length):
        rows = np.flatnonzero(first <= step) if step <= last else rows
        place = None if len(rows) == len(x) else to_device(rows, x.device)
        before = x if place is None else x[place]
        index = torch.full((len(rows),), step, device=x.device)
        value = evaluate_pairs(f, problem, before, index, rows)
        if not problem.memoryless:
            inputs, predictions = [before, *inputs[: history - 1]], [value, *predictions[: history - 1]]
            value = problem.next_state(step, inputs, predictions, to_device(rows, x.device))
        if place is None and not failed and _is_finite(value):
            x = value
            yield SerialState(step, rows, x, sound)
            continue
        failed = True
        good = (sound if place is None else sound[place]) & value.flatten(1).isfinite().all(dim=1)
        taken = torch.where(good.view(-1, *[1] * (x.ndim - 1)), value, before)
        x = taken if place is None else x.index_copy(0, place, taken)
        sound = good if place is None else sound.index_copy(0, place, good)
        yield SerialState(step, rows, x, sound)


def _is_finite(value: Tensor) -> bool:
    """Whether all entries are known to be finite: False on a device, for which the host would have to wait.

    A sum is finite only if all its terms are; where it overflows, they are looked at one by one.
    """
    return value.device.type == "cpu" and math.isfinite(value.detach().sum().item())


def _lost(z: Tensor, scale: Tensor, sound: Tensor) -> Evaluated:
    """Return the trajectory as an evaluated point without defects; its error is infinite in rows that failed."""
    error = torch.zeros_like(scale).masked_fill(~sound.unsqueeze(1), torch.inf)
    return Evaluated(z, z, error, scale, residual=torch.zeros_like(z))
