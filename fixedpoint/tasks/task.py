"""Tasks: the problems that a run compares solvers and gradient estimators on, and the results they return."""

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
    """The result of one cell of a run, in Python numbers and numpy arrays only.

    Attributes
    ----------
    metrics
        Name to number: the columns of the table, in order.
    status
        Status label to the number of rows that ended with it.
    rounds
        Number of rounds of the solve.
    evaluations
        Evaluations of all rows together.
    seconds
        Wall-clock time of the solve, in seconds.
    trace
        Name to array: ``relative_error`` of shape ``(n, B)`` with ``relative_error.rounds`` of shape ``(n,)``. A chain
        solver adds ``step_errors`` with its rounds and steps, see ``fixedpoint.tasks.steps``.
    epochs
        For a task that trains: name to an array with one number per epoch, which the report draws in this order.
    images, reference
        Pictures of the answer, and of the reference answer.
    forming
        Pictures of the first row after several rounds.
    message
        Sentences, one per line: the notes of the task, the plan of a solver that makes one, the meaning of the
        statuses.
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

    Attributes
    ----------
    solver
        The solver.
    termination
        The stopping rule.
    seed
        The seed from which the task makes its problem.
    gradient
        The gradient estimator; None if the run compares none.
    on_round
        Called with a :class:`.Progress` during the solve.
    shared
        Objects that the cells of one run share within one process; see :meth:`once`.
    """

    solver: Solver
    termination: Termination
    seed: int
    gradient: GradientEstimator | None = None
    on_round: Callable[[Progress], None] | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return ``make()``, called only once for ``key`` in each run and process.

        Parameters
        ----------
        key
            Identifies the object among all tasks of the run.
        make
            Makes the object.
        """
        if key not in self.shared:
            self.shared[key] = make()
        value: T = self.shared[key]
        return value


class Task(Options, ABC):
    """A task on which solvers or gradient estimators are compared: a frozen dataclass of options.

    Attributes
    ----------
    provides
        Abilities of its problems beyond being evaluated, by name (``"jvp"`` ...). A run compares them with the
        ``needs`` of solvers.
    """

    provides: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def run(self, context: Context) -> Result:
        """Run the task once and return its result."""


class HasNotes(ABC):
    """A task that has notes for the user, known before it is run."""

    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """Return sentences of the form ``subject: statement`` about what the task does without being asked explicitly.

        A run prints them, and its records store them.
        """


@dataclass(frozen=True)
class Judgement:
    """What a task measures of a solution, in addition to what the solution reports itself.

    Attributes
    ----------
    metrics
        Name to number: the columns of the table, in order.
    images, reference
        Pictures of the answer, and of the reference answer.
    """

    metrics: dict[str, float]
    images: Images | None = None
    reference: Images | None = None


class SolveTask(Task):
    """A task that builds a problem, solves it and judges the solution.

    A task that declares ``HasDrawing`` gets pictures of its states as they form. The time of the solve includes that of
    drawing, which is small: one row, in the first 14 rounds and 7 times for every further doubling of the number of
    rounds.
    """

    @abstractmethod
    def problem(self, seed: int) -> Problem:
        """Return the problem of this seed."""

    @abstractmethod
    def judge(self, problem: Problem, solution: Solution, context: Context) -> Judgement:
        """Measure the quality of the solution, if possible against an answer that the solver has not seen."""

    def solved(
        self, problem: Problem, solver: Solver, context: Context, on_round: Callable[[Progress], None] | None
    ) -> Solution:
        """Return the solution of the problem. The time that this takes is that of the cell."""
        evaluator = Evaluator(problem, norm=context.termination.yardstick)
        return solver.solve(evaluator, problem.initial(), context.termination, on_round)

    def run(self, context: Context) -> Result:
        problem = self.problem(context.seed)
        solver = solver_for(problem, context.solver)
        drawing = self.drawing(problem) if isinstance(self, HasDrawing) else None
        recorder = None if drawing is None else Recorder(drawing, problem.layout.rows, context.on_round)
        with torch.no_grad():
            _wait(problem)
            began = time.perf_counter()
            solution = self.solved(problem, solver, context, context.on_round if recorder is None else recorder)
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
    """Return the notes of a task; none where it does not declare ``HasNotes``."""
    return task.notes() if isinstance(task, HasNotes) else ()


def _wait(problem: Problem) -> None:
    """Wait for the device, so that the clock measures the work and not only its launch."""
    if problem.layout.device.type == "cuda":
        torch.cuda.synchronize(problem.layout.device)
