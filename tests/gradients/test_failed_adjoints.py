"""An adjoint equation that is cut short: told by every solver, with the error of what it gives, which is not zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradient_cases import by_offset, cotangent

import fixedpoint as fp
from fixedpoint.testing.problems import affine_contraction

SOLVERS: list[Any] = [
    "krylov",
    {"name": "krylov", "method": "bicgstab"},
    "picard",
    "anderson",
    "broyden",
    "newton-krylov",
    "auto",
]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("max_rounds", [1, 2, 3])
def test_an_equation_cut_short_is_told_with_the_error_of_what_is_given(solver: Any, max_rounds: int) -> None:
    problem = affine_contraction(torch.linspace(-0.9, 0.95, 12).tolist(), normal=False, bound=0.99, seed=6)
    g = cotangent(problem.start.shape)
    estimator = {"name": "implicit", "solver": solver, "termination": {"rtol": 1e-10, "max_rounds": max_rounds}}
    with pytest.warns(fp.AdjointWarning, match="4 of 4 rows was not solved"):
        u, solution = by_offset(problem, estimator, g)
    report = solution.extras["adjoint"]
    assert not report.converged.any()
    assert bool((u.norm(dim=1) > 0.1 * g.norm(dim=1)).all())
    value = (problem.matrix.mT @ u.unsqueeze(2)).squeeze(2) + g
    told = torch.from_numpy(report.relative_error)
    assert torch.allclose((value - u).norm(dim=1) / value.norm(dim=1), told, rtol=1e-6)
