"""Checks of what a solver that runs its own loop claims about its answer, compared with the library's judgement."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fixedpoint.core.solution import Claim, Solution
from fixedpoint.testing.bench import Bench, NotApplicableError, require
from fixedpoint.testing.checks.table import check

_ROUNDINGS = 64 * torch.finfo(torch.float64).eps


@check("claimed-error")
def claimed_error(bench: Bench) -> str:
    """Where the solver itself claims to have converged, the residual it reports is that of the point it returned.

    Published solvers return f(z) with the residual of z, which is wrong by an unknown factor.
    """
    compared = 0
    for name, problem in bench.family().items():
        solution = bench.solve(problem, rtol=1e-4, max_rounds=200)
        claim = _claim(solution)
        real = _residual(solution, claim)
        rows = claim.converged & np.isfinite(claim.residual)
        off = np.where(rows, np.abs(claim.residual - real), 0.0)
        row = int(np.argmax(off / np.maximum(real, _ROUNDINGS)))
        require(
            bool((off <= 1e-6 * real + _ROUNDINGS).all()),
            f"{name}: row {row} reports {claim.residual[row]:.2e}, the point it returned has {real[row]:.2e}",
        )
        compared += int(rows.sum())
    return f"{compared} rows, to rounding"


@check("claimed-convergence")
def claimed_convergence(bench: Bench) -> str:
    """Every row that the solver itself claims to have converged has converged, as judged at the point it returned."""
    claimed = 0
    for name, problem in bench.family().items():
        for rtol in (1e-2, 1e-8):
            solution = bench.solve(problem, rtol=rtol, max_rounds=80)
            refuse_false_claims(f"{name}, rtol={rtol:g}", solution)
            claimed += int(_claim(solution).converged.sum())
    return f"{claimed} rows, all of them"


def refuse_false_claims(name: str, solution: Solution) -> None:
    """Fail unless every row that the solver claims to have converged was judged so; no claim, no failure."""
    claim = solution.extras.get("claimed")
    if isinstance(claim, Claim):
        wrong = claim.converged & ~solution.converged
        real = _residual(solution, claim)
        worst = float(np.where(wrong, real / claim.tolerance, 0.0).max()) if claim.tolerance else np.inf
        require(not wrong.any(), f"{name}: {int(wrong.sum())} rows claim to have converged at {worst:.3g} tolerances")


def _claim(solution: Solution) -> Claim:
    claim = solution.extras.get("claimed")
    if not isinstance(claim, Claim):
        raise NotApplicableError("the solver says nothing beyond what was judged")
    return claim


def _residual(solution: Solution, claim: Claim) -> NDArray[np.float64]:
    """Return the judged error of every row, relative or absolute as in the claim."""
    error = solution.error / solution.scale if claim.relative else solution.error
    worst: NDArray[np.float64] = error.amax(dim=1).cpu().numpy()
    return worst
