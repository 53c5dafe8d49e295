"""Checks of what a solve says it cost."""

from __future__ import annotations

import torch

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.solver import AdaptsSolver
from fixedpoint.core.termination import Termination
from fixedpoint.testing.bench import Bench, require
from fixedpoint.testing.checks.table import check


@check("counts")
def counts(bench: Bench) -> str:
    """The function is called as often as the counts say: calls, evaluations of every row, and all of them.

    Counted inside the function, so that an evaluation made behind the evaluator's back shows. Comparisons
    between solvers are worth nothing without it.
    """
    for name, problem in {**bench.contractions(), "slow": bench.slow()}.items():
        watched, tally = bench.counted(problem)
        solution = bench.solve(watched, rtol=1e-6, max_rounds=50)
        said = solution.counts
        require(tally.calls == said.calls, f"{name}: called {tally.calls} times, reported {said.calls}")
        for row, reported in enumerate(said.evaluations.tolist()):
            real = tally.rows.get(row, 0)
            require(real == reported, f"{name}: row {row} was evaluated {real} times, reported {reported}")
        total = sum(tally.rows.values())
        require(total == said.computed, f"{name}: {total} row evaluations, reported {said.computed}")
        require(said.rounds <= tally.calls, f"{name}: {said.rounds} rounds in {tally.calls} calls")
    return "calls, rows and totals agree"


@check("start-kept")
def start_kept(bench: Bench) -> str:
    """The start handed to the solver is not written to."""
    for name, problem in bench.contractions().items():
        start = problem.initial()
        kept = start.clone()
        solver = problem.adapt(bench.solver) if isinstance(problem, AdaptsSolver) else bench.solver
        with torch.no_grad():
            solver.solve(Evaluator(problem), start, Termination())
        require(torch.equal(start, kept), f"{name}: the start was changed")
    return "unchanged"
