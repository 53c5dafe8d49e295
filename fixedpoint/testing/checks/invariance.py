"""Checks that the answer does not depend on units, relaxation, the structure of the state, or its memory layout."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fixedpoint.core.solver import Solver
from fixedpoint.testing.bench import Bench, NotApplicableError, independent_error, require, sound
from fixedpoint.testing.checks.claims import refuse_false_claims
from fixedpoint.testing.checks.table import check

_RELAXATIONS = ("relaxation", "tau")  # names that solvers give this option


@check("scale")
def scale(bench: Bench) -> str:
    """Solving s f(z / s) takes as many rounds as f, within one, and gives s times the answer, for s = 1e-6 and 1e6.

    This detects absolute constants inside a method, such as a ridge or a guard.
    """
    for name, problem in bench.contractions().items():
        reference = bench.solve(problem, rtol=1e-8)
        for factor in (1e-6, 1e6):
            solution = bench.solve(bench.scaled(problem, factor), rtol=1e-8)
            taken = abs(solution.rounds - reference.rounds).max()
            require(taken <= 1, f"{name}, s={factor:g}: {solution.rounds} rounds in place of {reference.rounds}")
            require(solution.status == reference.status, f"{name}, s={factor:g}: ended {solution!r}")
            norm = torch.linalg.vector_norm
            gap = norm(solution.state / factor - reference.state, dim=1) / norm(reference.state, dim=1)
            require(float(gap.max()) <= 1e-6, f"{name}, s={factor:g}: the answer differs by {float(gap.max()):.1e}")
    return "s = 1e-6 and 1e6"


@check("relaxation")
def relaxation(bench: Bench) -> str:
    """A small relaxation does not loosen the tolerance: converged rows are within it on the unrelaxed map.

    For a solver that runs its own loop, this also holds for the rows that it claims itself to have converged.
    """
    solver = _relaxed(bench.solver, 0.02)
    if solver is None:
        raise NotApplicableError("the solver has no option named relaxation")
    name, problem = next(iter(bench.contractions().items()))
    solution = bench.solve(problem, solver, rtol=1e-2, max_rounds=3000)
    sound(solution, name)
    error, size = independent_error(problem, solution.state)
    excess = torch.where(torch.from_numpy(solution.converged), error / (1e-2 * size), 0.0)
    worst = float(excess.max())
    require(worst <= 1.0 + 1e-9, f"{name}: converged with {worst:.2g} times the tolerance")
    refuse_false_claims(f"{name}, relaxation 0.02", solution)
    return f"relaxation=0.02: {int(solution.converged.sum())} rows said they converged, and had"


@check("structure")
def structure(bench: Bench) -> str:
    """A state given as a tuple or dict of pieces gives the same bits as the same state in one tensor."""
    first, *others = bench.structured()
    for state in others:
        require(torch.equal(state, first), f"differs by {float((state - first).abs().max()):.1e}")
    return "tensor, tuple and dict: same bits"


@check("strides")
def strides(bench: Bench) -> str:
    """A start that is not contiguous in memory gives the same bits as its contiguous copy."""
    start = bench.free_start()
    strided = start.T.contiguous().T
    first, second = bench.from_start(start), bench.from_start(strided)
    require(torch.equal(first.state, second.state), "the answers differ")
    require(first.status == second.status, "the statuses differ")
    return "same bits"


@check("deterministic")
def deterministic(bench: Bench) -> str:
    """Solving twice gives the same bits, statuses and counts."""
    for name, problem in {**bench.contractions(), "slow": bench.slow()}.items():
        first, second = (bench.solve(problem, rtol=1e-9, max_rounds=30) for _ in range(2))
        require(torch.equal(first.state, second.state), f"{name}: the answers differ")
        require(first.status == second.status, f"{name}: the statuses differ")
        require(first.counts.rounds == second.counts.rounds, f"{name}: the rounds differ")
    return "same bits"


def _relaxed(solver: Solver, relaxation: float) -> Solver | None:
    """Return the solver with another relaxation, set in it or in solvers inside it; None if there is no such option."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(solver):  # type: ignore[arg-type]  # every solver is a dataclass
        value = getattr(solver, field.name)
        if field.name in _RELAXATIONS:
            changes[field.name] = relaxation
        elif isinstance(value, Solver) and (inner := _relaxed(value, relaxation)) is not None:
            changes[field.name] = inner
    return dataclasses.replace(solver, **changes) if changes else None  # type: ignore[type-var]
