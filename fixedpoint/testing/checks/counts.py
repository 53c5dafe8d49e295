"""Checks of the counts, the start and the memory of a solve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fixedpoint.chains.choice import solver_for
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.termination import Termination
from fixedpoint.testing.bench import Bench, NotApplicableError, require
from fixedpoint.testing.checks.table import check
from fixedpoint.testing.plain_bench import PlainBench
from fixedpoint.testing.problems import HEquation


@check("counts")
def counts(bench: Bench) -> str:
    """The function is called as often as the counts say: calls, and evaluations and products of every row.

    Calls are counted inside the function, so that evaluations that bypass the evaluator are seen, and those that fail
    because the function has no forward mode. Comparisons between solvers depend on correct counts.
    """
    problems = {**bench.contractions(), "slow": bench.slow()}
    if isinstance(bench, PlainBench):
        lacking = {f"{name}, without forward mode": bench.opaque(problem) for name, problem in problems.items()}
        problems = {**problems, **lacking}
    for name, problem in problems.items():
        watched, tally = bench.counted(problem)
        solution = bench.solve(watched, rtol=1e-6, max_rounds=50)
        said = solution.counts
        require(tally.calls == said.calls, f"{name}: called {tally.calls} times, reported {said.calls}")
        for row, reported in enumerate((said.evaluations + said.products).tolist()):
            real = tally.rows.get(row, 0)
            require(real == reported, f"{name}: row {row} was evaluated {real} times, reported {reported}")
        total = sum(tally.rows.values())
        require(total == said.computed, f"{name}: {total} row evaluations, reported {said.computed}")
        require(said.rounds <= tally.calls, f"{name}: {said.rounds} rounds in {tally.calls} calls")
        require(said.rounds <= 50, f"{name}: {said.rounds} rounds at max_rounds=50")
    return "calls, rows and totals agree"


@check("start-kept")
def start_kept(bench: Bench) -> str:
    """The start that is passed to the solver is not modified by the solve."""
    for name, problem in bench.contractions().items():
        start = problem.initial()
        kept = start.clone()
        solver = solver_for(problem, bench.solver)
        with torch.no_grad():
            solver.solve(Evaluator(problem), start, Termination())
        require(torch.equal(start, kept), f"{name}: the start was changed")
    return "unchanged"


@check("memory")
def memory(bench: Bench) -> str:
    """If a few rounds suffice, no tensor is larger for a limit of 1000 rounds than for a limit of 50.

    Growth by a few scalars per round is allowed. A limit is not a forecast: memory that is reserved for it is not
    available to the model.
    """
    if not isinstance(bench, PlainBench):
        raise NotApplicableError("a chain holds all its states from the start")
    rows, unknowns = 2, 64
    problem = HEquation(
        torch.ones(rows, unknowns, dtype=torch.float64, device="cpu"),
        torch.full((rows, 1), 0.5, dtype=torch.float64, device="cpu"),
    )
    largest = {}
    for limit in (50, 1000):
        with _Largest() as watch:
            bench.solve(problem, rtol=1e-4, max_rounds=limit)
        largest[limit] = watch.nbytes
    grown = (largest[1000] - largest[50]) / (950 * rows * 8)
    require(
        grown <= 0.25 * unknowns,
        f"the largest tensor grew from {largest[50]:,} to {largest[1000]:,} bytes with the limit on rounds",
    )
    return f"at most {largest[1000]:,} bytes in a tensor"


class _Largest(TorchDispatchMode):
    """Records the size of the largest tensor that is created."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.nbytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would load its compiler to skip it, which takes longer than most of the checks."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.nbytes = max(self.nbytes, *sizes, 0)
        return result
