"""The base class of the tasks of this package, which compares states with those of the serial run."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fixedpoint.chains.methods.serial import Serial
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.problem import Problem
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.solution import Solution
from fixedpoint.core.termination import Termination
from fixedpoint.tasks.task import Context, Judgement, SolveTask

__all__ = ["SequenceTask"]


@dataclass(frozen=True)
class SequenceTask(SolveTask):
    """A task that compares the states of a chain with those of the serial run.

    The metric ``relative_error`` is the relative error of the last state. ``trajectory_error`` is the largest error of
    any state relative to the largest state. Both are those of the worst row. ``derivatives`` is the number of steps,
    over all rows, at which a Jacobian or its diagonal was evaluated.
    """

    provides = frozenset({"chain", "slopes", "jacobians"})

    length: int = option(200, ge=1, help="N, the number of steps")
    batch: int = option(4, ge=1, help="sequences solved at once")
    dtype: Literal["float32", "float64"] = option("float64", help="dtype of the states")
    device: str = option("cpu", help="device of the states")
    max_batch: int | None = option(None, ge=1, help="largest number of steps per call; default: all")

    @abstractmethod
    def problem(self, seed: int) -> ChainProblem:
        """The chain for a seed."""

    def judge(self, problem: Problem, solution: Solution, context: Context) -> Judgement:
        assert isinstance(problem, ChainProblem)  # made by ``problem``
        exact = context.once((self, context.seed, "serial"), lambda: _serial_states(problem))
        difference = (solution.z - exact).double()
        norms, sizes = row_norms(difference[:, -1]), row_norms(exact[:, -1])
        relative = norms / torch.where(sizes > 0, sizes, 1.0)
        states = difference.norm(dim=2).amax(1) / exact.double().norm(dim=2).amax(1)
        return Judgement(
            {
                "relative_error": float(relative.amax()),
                "trajectory_error": float(states.amax()),
                "derivatives": int(solution.counts.products.sum()),
            }
        )


def _serial_states(problem: ChainProblem) -> Tensor:
    """All states, computed step by step."""
    states: Tensor = Serial().solve(Evaluator(problem), problem.initial(), Termination()).z
    return states
