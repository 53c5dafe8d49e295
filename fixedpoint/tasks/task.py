"""Task: a frozen dataclass of options that runs a solver and says how it did."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fixedpoint.chains.choice import solver_for
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import Options
from fixedpoint.core.problem import Problem
from fixedpoint.core.progress import Progress
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.gradients.estimator import GradientEstimator
from fixedpoint.tasks.forming import Forming, HasDrawing, Recorder
from fixedpoint.tasks.images import Images
from fixedpoint.tasks.steps import step_trace

__all__ = ["Context", "HasNotes", "Images", "Judgement", "Result", "SolveTask", "Task"]

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What one cell of a run yields; host numbers only.

    Attributes
    ----------
    metrics
        Name to number; the columns of the table, in order.
    status
        How many rows ended with each status label.
    rounds
        Sequential evaluations.
    evaluations
        Evaluations of all rows together (work).
    seconds
        Wall-clock time of the solve.
    trace
        Name to array: ``relative_error`` of shape ``(n, B)`` with ``relative_error.rounds`` of shape ``(n,)``; from a
        chain solver ``step_errors`` with its rounds and steps, see ``fixedpoint.tasks.steps``.
    epochs
        Name to array, one number an epoch, of a task that trains: what of it is worth drawing, in order.
    images, reference
        Pictures of the answer, and of what it should be.
    forming
        Pictures of the first row, round by round.
    message
        What the statuses mean; before that, the notes of the task, and what a solver that plans has planned.
    """

    metrics: dict[str, float]
    status: dict[str, int]
    rounds: int
    evaluations: int
    seconds: float
    trace: dict[str, NDArray[np.number[Any]]] = field(default_factory=dict)
    epochs: dict[str, NDArray[np.number[Any]]] = field(default_factory=dict)
    images: Images | None = None
    reference: Images | None = None
    forming: Forming | None = None
    message: str = ""


@dataclass
class Context:
    """What a task is run with.

    ``shared`` is kept between the cells of one run in one process; use :meth:`once` for what several cells need.
    """

    solver: Solver
    termination: Termination
    seed: int
    gradient: GradientEstimator | None = None
    on_round: Callable[[Progress], None] | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """``make()``, made once per run."""
        if key not in self.shared:
            self.shared[key] = make()
        value: T = self.shared[key]
        return value


class Task(Options, ABC):
    """Something to compare solvers or gradients on: a frozen dataclass of options.

    ``provides`` are names (``"jvp"`` ...) of what its problems can do beyond being evaluated, for solvers and
    gradient estimators that need it.
    """

    provides: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def run(self, context: Context) -> Result:
        """Run it once and say how it went."""


class HasNotes(ABC):
    """A task of which something is to be known before it is run."""

    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What it does that was not asked for in so many words: sentences, each ``subject: what``.

        A run says them, and its records keep them.
        """


@dataclass(frozen=True)
class Judgement:
    """What a task says of a solution, beyond what the solution says itself."""

    metrics: dict[str, float]
    images: Images | None = None
    reference: Images | None = None


class SolveTask(Task):
    """A task that builds a problem, has it solved, and judges the solution.

    One that can draw its states (``HasDrawing``) has them drawn as they form. The time of the solve contains that of
    drawing, which is little: one row, in the first 14 rounds and 7 times for every further doubling of their number.
    """

    @abstractmethod
    def problem(self, seed: int) -> Problem:
        """The problem of that seed."""

    @abstractmethod
    def judge(self, problem: Problem, solution: Solution, context: Context) -> Judgement:
        """How good the solution is, by an answer the solver has not seen where there is one."""

    def run(self, context: Context) -> Result:
        problem = self.problem(context.seed)
        solver = solver_for(problem, context.solver)
        drawing = self.drawing(problem) if isinstance(self, HasDrawing) else None
        recorder = None if drawing is None else Recorder(drawing, problem.layout.rows, context.on_round)
        with torch.no_grad():
            evaluator = Evaluator(problem, norm=context.termination.yardstick)
            _wait(problem)
            began = time.perf_counter()
            solution = solver.solve(
                evaluator, problem.initial(), context.termination, context.on_round if recorder is None else recorder
            )
            _wait(problem)
            seconds = time.perf_counter() - began
            judgement = self.judge(problem, solution, context)
            forming = None if recorder is None else recorder.formed(solution)
        return Result(
            metrics=judgement.metrics,
            status={status.label: count for status, count in sorted(Counter(solution.status).items())},
            rounds=solution.counts.rounds,
            evaluations=int(solution.evaluations.sum()),
            seconds=seconds,
            trace={
                "relative_error": solution.trace.relative,
                "relative_error.rounds": solution.trace.rounds,
                **step_trace(solution),
            },
            images=judgement.images,
            reference=judgement.reference,
            forming=forming,
            message="\n".join(
                [*_notes(self), *map(str, filter(None, [solution.extras.get("plan")])), solution.message]
            ),
        )


def _notes(task: Task) -> tuple[str, ...]:
    return task.notes() if isinstance(task, HasNotes) else ()


def _wait(problem: Problem) -> None:
    if problem.layout.device.type == "cuda":
        torch.cuda.synchronize(problem.layout.device)
