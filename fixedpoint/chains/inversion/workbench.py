"""``Workbench``: holds the states of a chain while an inverter finds them, and the residuals of the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.chain import Chain
from fixedpoint.chains.inversion.problem import InverseProblem
from fixedpoint.chains.slope.preconditioner import Coefficient, Gaussian, Identity
from fixedpoint.core.counts import Counts
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.progress import Progress
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.solvers.picard import Picard

__all__ = ["AnySlope", "Workbench"]

AnySlope = Identity | Coefficient | Gaussian
"""Preconditioners with one known slope per step, which an inverse requires."""


@dataclass
class Workbench:
    """The states of a chain while an inverter finds them, from the last one to the first.

    Attributes
    ----------
    chain
        The chain.
    end
        ``x_N``, shape ``(B, *event)``.
    max_batch
        Largest number of (state, step) pairs in one call of ``chain.step``; None: no limit.
    tell
        Called after every round with the name of the stage and the progress of its solve; None: not called.
    clean
        Number of steps of the clean end.
    tolerance
        The rms of the round trip at which a row counts as inverted, in units of the states.
    states
        ``x_0 .. x_{N-1}``, shape ``(B, N, *event)``; not initialised before an inverter sets them.
    residuals
        Shape ``(B, N)``, float64: rms of ``Phi_i(x_i) - x_{i+1}``, in units of the states.
    clean_end_defect
        Shape ``(B, *event)``: the sum of ``Phi_i(x_i) - x_{i+1}`` over the clean end.
    counts
        The rounds, calls and evaluations spent so far.
    stages
        Number of rounds of every stage, by its name.
    joint
        The solution of the joint part, if there is one.
    """

    chain: Chain
    end: Float[Tensor, "B *event"]
    max_batch: int | None
    tell: Callable[[str, Progress], None] | None
    clean: int
    tolerance: float = 2e-3
    states: Float[Tensor, "B N *event"] = field(init=False)
    residuals: Float[Tensor, "B N"] = field(init=False)
    clean_end_defect: Float[Tensor, "B *event"] = field(init=False)
    counts: Counts = field(init=False)
    stages: dict[str, int] = field(default_factory=dict)
    joint: Solution | None = None

    def __post_init__(self) -> None:
        rows, length = len(self.end), self.chain.length
        self.states = self.end.new_empty(rows, length, *self.end.shape[1:])
        self.residuals = torch.zeros(rows, length, dtype=torch.float64, device=self.end.device)
        self.clean_end_defect = torch.zeros_like(self.end)
        none = np.zeros(rows, dtype=np.int64)
        self.counts = Counts(rounds=0, calls=0, evaluations=none, computed=0, products=none.copy())

    def solve(self, stage: str, steps: range, solver: Solver, rule: Termination, preconditioner: AnySlope) -> Solution:
        """Find the states before ``steps`` jointly, from the state after them, and store them.

        Parameters
        ----------
        stage
            Name of the stage, for progress and counts.
        steps
            Consecutive steps, ``range(first, last)``; the state after the last one must be known.
        solver
            Solver of the joint fixed point; not a solver of chains.
        rule
            When it stops.
        preconditioner
            The slopes of the steps.

        Returns
        -------
        Solution
            The solution of the joint fixed point.
        """
        problem = self.problem(steps, preconditioner)
        solution = self.solved(stage, problem, solver, rule)
        self.states[:, steps.start : steps.stop] = solution.z
        self._note(problem.defects(solution.state, solution.fstate), steps)
        return solution

    def solve_apart(self, stage: str, step: int, solver: Solver, rule: Termination, preconditioner: AnySlope) -> None:
        """Find the state before one step that nearly projects, and store it. The arguments are those of :meth:`solve`.

        In a direction of which the step passes nothing on, nothing limits how far an accelerated solver goes. A row
        that has moved farther than plain rounds could have moved it is solved again by plain rounds.
        """
        steps = range(step, step + 1)
        problem = self.problem(steps, preconditioner)
        solution = self.solved(stage, problem, solver, rule)
        state, value = solution.state.clone(), solution.fstate.clone()
        # The most that plain rounds can move a row if every one is as long as the first.
        reach = float(rule.max_rounds or 1) * solution.trace.error[0]
        gone = row_norms(state - problem.forward.x0.flatten(1)).cpu().numpy()
        far = np.flatnonzero(~(gone <= reach) & np.isfinite(reach))
        if len(far):
            rows = to_device(far, state.device)
            again = self.solved(stage, problem.take(rows), Picard(), rule, rows=far)
            state[rows], value[rows] = again.state, again.fstate
        self.states[:, step] = state.view_as(self.end)
        self._note(problem.defects(state, value), steps)

    def solve_again(
        self,
        stage: str,
        step: int,
        solver: Solver,
        rule: Termination,
        preconditioner: AnySlope,
        rows: NDArray[np.int64],
    ) -> None:
        """Find the state before one step anew in some rows, from the state after it; arguments as for :meth:`solve`."""
        steps, places = range(step, step + 1), to_device(rows, self.end.device)
        problem = self.problem(steps, preconditioner).take(places)
        solution = self.solved(stage, problem, solver, rule, rows=rows)
        self.states[places, step] = solution.z[:, 0]
        defects = problem.defects(solution.state, solution.fstate)
        self.residuals[places, step] = defects[:, 0].double().square().mean(dim=1).sqrt()

    def step_on(self, stage: str, step: int, solver: Solver, rule: Termination, preconditioner: AnySlope) -> None:
        """Find the state before one step, and store the value of the map at the best point.

        The arguments are those of :meth:`solve`. No residual is known for that state: call :meth:`look` afterwards.
        """
        steps = range(step, step + 1)
        solution = self.solved(stage, self.problem(steps, preconditioner), solver, rule)
        self.states[:, step] = solution.fz[:, 0]

    def problem(self, steps: range, preconditioner: AnySlope) -> InverseProblem:
        """Return the inverse problem of some steps, given the state after them."""
        after = self.end if steps.stop == self.chain.length else self.states[:, steps.stop]
        return InverseProblem(self.chain, after, preconditioner=preconditioner, max_batch=self.max_batch, steps=steps)

    def look(self, stage: str, rows: Int[Tensor, " k"] | None = None) -> None:
        """Evaluate every step at the states of all rows, or of some, in one round, and store the residuals."""
        places = torch.arange(len(self.end), device=self.end.device) if rows is None else rows
        problem = InverseProblem(
            self.chain, self.end[places], max_batch=self.max_batch, rows=places, start=self.states[places]
        )
        evaluator = Evaluator(problem)
        at = evaluator(problem.initial())
        defects = problem.defects(at.z, at.fz)
        self.residuals[places] = defects.double().square().mean(dim=2).sqrt()
        of_clean = defects[:, self.chain.length - self.clean :].sum(dim=1)
        self.clean_end_defect[places] = of_clean.view_as(self.end[places])
        self.spent(stage, evaluator.counts, None if rows is None else rows.cpu().numpy())

    def spent(self, stage: str, counts: Counts, rows: NDArray[np.int64] | None = None) -> None:
        """Add the counts of a stage; with ``rows`` they are those of these rows only."""
        if rows is not None:
            none = np.zeros(len(self.end), dtype=np.int64)
            evaluations, products = none.copy(), none
            evaluations[rows], products[rows] = counts.evaluations, counts.products
            counts = replace(counts, evaluations=evaluations, products=products)
        self.counts.add(counts)
        self.stages[stage] = self.stages.get(stage, 0) + counts.rounds

    def solved(
        self,
        stage: str,
        problem: InverseProblem,
        solver: Solver,
        rule: Termination,
        rows: NDArray[np.int64] | None = None,
    ) -> Solution:
        """Solve a problem, of all rows or of those that are named, and count it; no state is stored."""
        tell = self.tell
        on_round = None if tell is None else lambda progress: tell(stage, progress)
        solution = solver.solve(Evaluator(problem, norm=rule.yardstick), problem.initial(), rule, on_round)
        self.spent(stage, solution.counts, rows)
        return solution

    def _note(self, defects: Float[Tensor, "B n d"], steps: range) -> None:
        self.residuals[:, steps.start : steps.stop] = defects.double().square().mean(dim=2).sqrt()
        for place in range(max(steps.start, self.chain.length - self.clean), steps.stop):
            self.clean_end_defect += defects[:, place - steps.start].view_as(self.clean_end_defect)
