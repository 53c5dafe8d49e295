"""Checks that the answer of a row does not depend on the other rows of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fixedpoint.core.solution import Solution
from fixedpoint.testing.bench import Bench, require
from fixedpoint.testing.checks.table import check

# Low enough that the limit cuts some problems short.
_LIMIT = 30


@check("row-alone")
def row_alone(bench: Bench) -> str:
    """A row that is solved alone gives the same bits, status and counts as in a batch (float64)."""
    for name, problem in {**bench.contractions(), "slow": bench.slow()}.items():
        for rtol in (1e-2, 1e-9):
            batch = bench.solve(problem, rtol=rtol, max_rounds=_LIMIT)
            for row in range(len(batch.status)):
                if not _waited(batch, row):
                    alone = bench.solve(bench.alone(problem, row), rtol=rtol, max_rounds=_LIMIT)
                    _same(f"{name}, rtol={rtol:g}", batch, row, alone, 0)
    return "same bits"


@check("nonfinite-neighbour")
def nonfinite_neighbour(bench: Bench) -> str:
    """A row gives the same bits in a batch with a row whose function returns NaN or Inf, at once or later."""
    for name, problem in bench.contractions().items():
        whole = bench.solve(problem, rtol=1e-9)
        for value, grace in ((float("nan"), 0), (float("nan"), 3), (float("inf"), 3)):
            beside = bench.solve(bench.poisoned(problem, 1, value, grace), rtol=1e-9)
            _same_rows(f"{name} beside {value}", whole, beside, (0, 2, 3))
    return "same bits"


@check("diverging-neighbour")
def diverging_neighbour(bench: Bench) -> str:
    """A row gives the same bits in a batch with a row that diverges."""
    problem, diverging, healthy = bench.beside_diverging()
    _same_rows("beside a diverging row", bench.solve(problem, rtol=1e-9), bench.solve(diverging, rtol=1e-9), healthy)
    return "same bits"


def _waited(solution: Solution, row: int) -> bool:
    """Return whether a row waited for others in a solve that the limit cut short; alone it would get more rounds."""
    spent = int(solution.evaluations[row] + solution.counts.products[row])
    return solution.counts.rounds >= _LIMIT and spent < int(solution.rounds[row])


def _same_rows(name: str, whole: Solution, beside: Solution, rows: Sequence[int]) -> None:
    for row in rows:
        _same(name, whole, row, beside, row)


def _same(name: str, first: Solution, row: int, second: Solution, other: int) -> None:
    if not torch.equal(first.state[row], second.state[other]):
        gap = float((first.state[row] - second.state[other]).abs().max())
        require(False, f"{name}: row {row} differs by {gap:.1e}")
    said, heard = first.status[row].label, second.status[other].label
    require(said == heard, f"{name}: row {row} ended {said} in one batch and {heard} in another")
    spent = int(first.evaluations[row]), int(second.evaluations[other])
    require(
        spent[0] == spent[1], f"{name}: row {row} took {spent[0]} evaluations in one batch and {spent[1]} in another"
    )
