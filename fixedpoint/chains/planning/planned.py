"""The solver that ``auto`` stands for on a chain: step by step, jointly, or in a window, whichever is quickest.

The seconds of a step are measured on this machine (``fixedpoint.chains.planning.costs``); how many rounds and
evaluations a joint solve takes is estimated (``fixedpoint.chains.planning.plan``). A joint solve that takes twice the
expected rounds is abandoned for the rows that are not solved: these continue step by step from their last final state.
So a wrong plan costs about twice the time of the better choice, never more.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.joint.solver import BlockSecant, ChainSolver, joint
from fixedpoint.chains.methods.serial import Serial, iterate_steps
from fixedpoint.chains.planning.costs import measured_costs
from fixedpoint.chains.planning.overhead import round_overhead_seconds
from fixedpoint.chains.planning.plan import FROM_ONE_JUMP, WITH_SECANTS, Plan, plan, step_by_step
from fixedpoint.chains.problem import ChainProblem, chain_of
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.progress import Progress
from fixedpoint.core.reduce import row_norms
from fixedpoint.core.solution import Solution
from fixedpoint.core.solver import Solver
from fixedpoint.core.status import Status
from fixedpoint.core.statuses import Statuses
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device

__all__ = ["PlannedChainSolver"]

_log = logging.getLogger(__name__)
# Share of the seconds of a serial run that measuring larger batches may take.
# A serial run shorter than _TOO_SHORT_TO_PLAN seconds is not worth planning.
_MEASURING_SHARE, _TOO_SHORT_TO_PLAN = 0.1, 0.25
# A joint solve is abandoned after this many times the expected rounds.
_PATIENCE = 2
# States in memory per state in the window: 2 m + 8, with m = 2.
_BUFFERS = 12


@dataclass(frozen=True)
class PlannedChainSolver(Solver):
    """Solves a chain the way that is expected to be quickest; ``solution.extras["plan"]`` says which, and why.

    In three cases nothing is measured and the whole chain is solved jointly: if ``max_rounds`` is less than the number
    of steps, while autograd records, and from a given trajectory, which a serial run could not use.
    """

    history_limit: float = option(1.0, gt=0.0, help="memory the states in a window may take, with history, in GiB")

    needs = frozenset({"chain"})
    provides = frozenset({"trajectory"})

    @property
    def known_faults(self) -> dict[str, str]:
        return {"solved-start": "it makes its own start"}

    def solve(
        self,
        f: Evaluator,
        z0: Float[Tensor, "B D"],
        termination: Termination,
        on_round: Callable[[Progress], None] | None = None,
    ) -> Solution:
        problem = chain_of(f.problem, "a chain solver")
        limit = termination.max_rounds
        limited = limit is not None and limit < problem.length
        if limited or torch.is_grad_enabled() or problem.start is not None:
            return joint(problem).solve(f, z0, termination, on_round)
        planned = self.plan(f, problem, termination)
        _log.info("%s", planned)
        return replace(_run_plan(planned, f, problem, z0, termination, on_round), solver=self)

    def plan(self, f: Evaluator, problem: ChainProblem, termination: Termination) -> Plan:
        """Return the plan for the chain, measuring what has not been measured yet."""

        def count(states: int) -> None:
            f.counts.calls += 1
            f.counts.computed += states

        states = problem.x0.numel() * problem.x0.element_size()
        costs = measured_costs(problem, lambda seconds: _MEASURING_SHARE * problem.length * seconds, count)
        serial = step_by_step(costs, len(problem.x0), problem.length)
        if serial.seconds < _TOO_SHORT_TO_PLAN:
            return Plan(serial)
        secants = isinstance(joint(problem).accelerator, BlockSecant)
        return plan(
            costs,
            rows=len(problem.x0),
            length=problem.length,
            rtol=termination.rtol,
            eps=torch.finfo(problem.x0.dtype).eps,
            slack=ChainSolver().slack,
            overhead=functools.partial(round_overhead_seconds, problem.x0, secants, problem.length),
            widest=max(int(self.history_limit * 2**30 / (_BUFFERS * states)), 1),
            estimate=WITH_SECANTS if secants else FROM_ONE_JUMP,
            slides=problem.recurrence.slides,
        )


def _run_plan(
    planned: Plan,
    f: Evaluator,
    problem: ChainProblem,
    z0: Float[Tensor, "B D"],
    termination: Termination,
    on_round: Callable[[Progress], None] | None,
) -> Solution:
    chosen, told = planned.chosen, {"plan": planned}
    f.problem = problem.in_batches(chosen.max_batch)
    if chosen.window is None:
        solution = Serial().solve(f, z0, termination, on_round)
        return replace(solution, extras={**solution.extras, **told})
    window = None if chosen.window == problem.length else chosen.window
    limit = min(_PATIENCE * chosen.rounds, termination.max_rounds or problem.length + 1)
    solution = joint(problem, window).solve(f, z0, replace(termination, max_rounds=limit), on_round)
    slow = Statuses(solution.status).codes == Status.MAX_ROUNDS
    if slow.any() and limit < (termination.max_rounds or problem.length + 1):
        _log.info("%d rows were not solved in %d rounds; they go on step by step", slow.sum(), limit)
        solution = _finished(solution, slow, f, problem, on_round)
    return replace(solution, extras={**solution.extras, **told})


def _finished(
    solution: Solution,
    slow: NDArray[np.bool_],
    f: Evaluator,
    problem: ChainProblem,
    on_round: Callable[[Progress], None] | None,
) -> Solution:
    """Finish the rows ``slow`` step by step from their last final state, and return the solution with their results."""
    exact: NDArray[np.int64] = solution.extras["exact"]
    held = solution.state.unflatten(1, (solution.layout.blocks, -1)).clone()
    # With keep="last" the final states are not stored, and of a chain with a memory the predictions are not, so these
    # rows start from x_0.
    known = problem.keep == "all"
    first = np.where(slow, exact if known and problem.memoryless else 0, problem.length)
    x = problem.x0.flatten(1).clone()
    begun = np.flatnonzero(slow & (first > 0))
    place, state = (to_device(part, x.device) for part in (begun, first[begun] - 1))
    x[place] = held[place, state]
    sound = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for at in iterate_steps(f, problem, x.view_as(problem.x0), first):
        place, last, sound = to_device(at.rows, x.device), at.x.flatten(1), at.sound
        held[place, at.step if known else 0] = last[place]
        if on_round is not None:
            spent = f.counts.evaluations.copy()
            on_round(Progress(f.counts.rounds, len(at.rows), float("nan"), spent, last))
    mask = to_device(slow, x.device)
    column = mask.unsqueeze(1)
    serial = torch.where(sound, 0.0, torch.inf).to(solution.error).unsqueeze(1)
    failed = slow & ~sound.cpu().numpy()
    return replace(
        solution,
        state=torch.where(column, held.flatten(1), solution.state),
        fstate=torch.where(column, held.flatten(1), solution.fstate),
        error=torch.where(column, serial, solution.error),
        scale=torch.where(column, row_norms(held[:, -1]).unsqueeze(1), solution.scale),
        status=Statuses(solution.status).where(slow, Status.CONVERGED).where(failed, Status.NONFINITE),
        rounds=np.where(slow, solution.rounds + problem.length - first, solution.rounds),
    )
