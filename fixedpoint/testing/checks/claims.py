"""Checks of what a solver that owns its loop says of its own answer, beside what was judged from outside."""

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
    """The residual that the solver itself reports is that of the point it returned, where it says it converged.

    Published solvers return f(z) with the residual of z, which is off by a factor that nobody knows.
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
    """Every row that the solver itself holds for converged is so, judged from outside at the point it returned."""
    claimed = 0
    for name, problem in bench.family().items():
        for rtol in (1e-2, 1e-8):
            solution = bench.solve(problem, rtol=rtol, max_rounds=80)
            refuse_false_claims(f"{name}, rtol={rtol:g}", solution)
            claimed += int(_claim(solution).converged.sum())
    return f"{claimed} rows, all of them"


def refuse_false_claims(name: str, solution: Solution) -> None:
    """Demand that what the solver itself holds for converged was judged so; says nothing where it claims nothing."""
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
    """What was judged, in the terms of the claim."""
    error = solution.error / solution.scale if claim.relative else solution.error
    worst: NDArray[np.float64] = error.amax(dim=1).cpu().numpy()
    return worst
