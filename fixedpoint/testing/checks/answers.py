"""Checks of the answer: does the returned point have the error and value that the solution reports?"""

from __future__ import annotations

import torch

from fixedpoint.core.status import Status
from fixedpoint.testing.bench import Bench, NotApplicableError, independent_error, require, sound
from fixedpoint.testing.checks.table import check
from fixedpoint.testing.plain_bench import PlainBench

_EPS = torch.finfo(torch.float64).eps
_ROUNDINGS = 64 * _EPS


@check("returned-error")
def returned_error(bench: Bench) -> str:
    """The reported error equals the error of the returned point in a new evaluation, and fz is f at that point.

    A solver that returns f(z) with the error of z reports an error that is several times too large or too small.
    """
    for name, problem in bench.family().items():
        solution = bench.solve(problem, rtol=1e-4, max_rounds=60)
        sound(solution, name)
        error, scale = independent_error(problem, solution.state)
        off = (solution.error.amax(dim=1) - error).abs() / scale
        require(float(off.max()) <= _ROUNDINGS, f"{name}: reported error is off by {float(off.max()):.1e} of the scale")
        fz = problem(solution.state.clone())
        gap = (solution.fstate - fz).abs().amax(dim=1) / fz.abs().amax(dim=1)
        require(float(gap.max()) <= _ROUNDINGS, f"{name}: fz is not f at the returned point, off by {gap.max():.1e}")
    return f"{len(bench.family())} problems, to rounding"


@check("honest-convergence")
def honest_convergence(bench: Bench) -> str:
    """Every row reported as converged is within the tolerance, by an independent evaluation.

    Some of the problems need not be solved; then the solver must not report that it solved them.
    """
    claimed = 0
    for name, problem in bench.family().items():
        for rtol in (1e-2, 1e-8):
            solution = bench.solve(problem, rtol=rtol, max_rounds=80)
            sound(solution, name)
            error, scale = independent_error(problem, solution.state)
            excess = torch.where(torch.from_numpy(solution.converged), error / (rtol * scale + _ROUNDINGS * scale), 0.0)
            worst = float(excess.max())
            require(worst <= 1.0 + 1e-9, f"{name}: converged at rtol={rtol:g} with {worst:.2g} times the tolerance")
            claimed += int(solution.converged.sum())
    return f"{claimed} rows said they converged, and had"


@check("contractions")
def contractions(bench: Bench) -> str:
    """Contractions are solved, and the returned point is as close to the known answer as the tolerance implies."""
    for name, problem in bench.contractions().items():
        solution = bench.solve(problem, rtol=1e-8, max_rounds=5000)
        labels = [status.label for status in solution.status]
        require(bool(solution.converged.all()), f"{name}: ended {', '.join(labels)}")
        answer = bench.answer(problem)
        distance = torch.linalg.vector_norm(solution.state - answer, dim=1)
        allowed = 2e-8 / (1 - bench.bound) * torch.linalg.vector_norm(answer, dim=1) * _growth(bench)
        require(bool((distance <= allowed).all()), f"{name}: {float(distance.max()):.1e} away from the answer")
    return f"{len(bench.contractions())} problems to rtol=1e-8"


@check("solved-start")
def solved_start(bench: Bench) -> str:
    """A start that is already the solution costs one evaluation and is returned unchanged."""
    problem = bench.solved()
    solution = bench.solve(problem)
    require(solution.status == (Status.CONVERGED,) * 4, f"ended {solution!r}")
    require(solution.counts.rounds == 1, f"took {solution.counts.rounds} rounds where one is enough")
    require(torch.equal(solution.state, problem.initial()), "the point was changed")
    return "one round"


@check("max-rounds")
def max_rounds(bench: Bench) -> str:
    """The limit on rounds is kept; rows that it cut short have that status and a finite point."""
    problem = bench.unhurried()
    for limit in (1, 2, 5):
        solution = bench.solve(problem, rtol=1e-12, max_rounds=limit)
        sound(solution, f"max_rounds={limit}")
        require(solution.counts.rounds <= limit, f"took {solution.counts.rounds} rounds at max_rounds={limit}")
        early = solution.counts.rounds < limit  # Newton's method needs only a few
        require(
            all(status is Status.MAX_ROUNDS or (early and status is Status.CONVERGED) for status in solution.status),
            f"ended {solution!r} at max_rounds={limit}",
        )
    return "1, 2 and 5 rounds"


@check("best-returned")
def best_returned(bench: Bench) -> str:
    """A row that did not converge is returned with a point no worse than any at which it was evaluated."""
    if not isinstance(bench, PlainBench):
        raise NotApplicableError("the answer of a chain is its latest point, not the best")
    for name, problem in bench.family().items():
        for limit in (3, 60):
            solution = bench.solve(problem, rtol=1e-12, max_rounds=limit)
            best = torch.from_numpy(solution.trace.error).nan_to_num(nan=torch.inf).amin(dim=0)
            error = solution.error.amax(dim=1)
            worse = (error > best) & ~torch.from_numpy(solution.converged)
            excess = float(torch.where(worse, error / best, 0.0).max())
            require(excess == 0.0, f"{name}, {limit} rounds: {excess:.3g} times the error of a point it left behind")
    return "after 3 rounds and after 60"


def _growth(bench: Bench) -> float:
    """Return the factor by which the error of a chain may grow along its steps; 1 for contractions."""
    return 1.0 if bench.bound else 100.0
