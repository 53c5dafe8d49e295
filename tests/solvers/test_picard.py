"""Picard iteration against its closed form."""

from __future__ import annotations

import itertools

import pytest
import torch

from fixedpoint import Picard, solve
from fixedpoint.testing.problems import affine_contraction


@pytest.mark.parametrize("relaxation", [1.0, 0.5, 0.1, 1.4])
def test_errors_fall_by_the_relaxed_factor(relaxation):
    problem = affine_contraction((0.6,), rows=2, seed=1)
    solution = solve(problem, solver=Picard(relaxation=relaxation), rtol=1e-6)
    factor = abs(1 - relaxation * (1 - 0.6))
    errors = solution.trace.error[: int(solution.rounds.min())]
    assert errors.shape[0] > 5
    assert torch.allclose(torch.from_numpy(errors[1:] / errors[:-1]), torch.tensor(factor).double(), rtol=1e-4)


@pytest.mark.parametrize("relaxation", [1.0, 0.05])
def test_relaxation_does_not_loosen_the_tolerance(relaxation):
    problem = affine_contraction((0.3, -0.2), rows=3, seed=2)
    solution = solve(problem, solver=Picard(relaxation=relaxation), rtol=1e-4, max_rounds=5000)
    residual = torch.linalg.vector_norm(problem(solution.z) - solution.z, dim=1)
    assert solution.converged.all()
    assert bool((residual <= 1e-4 * torch.linalg.vector_norm(problem(solution.z), dim=1)).all())
    assert torch.linalg.vector_norm(solution.z - problem.solution, dim=1).max() < 1e-3


def test_relaxation_tames_an_oscillation():
    problem = affine_contraction((-1.5, 0.5), rows=2, seed=3)
    assert not solve(problem, solver=Picard()).converged.any()
    assert solve(problem, solver=Picard(relaxation=0.5)).converged.all()


def test_the_points_are_the_iterates():
    points = []

    def f(z):
        points.append(z.clone())
        return torch.cos(z)

    solve(f, torch.tensor([[1.0, 0.2]], dtype=torch.float64), solver=Picard(), max_rounds=6, rtol=1e-14)
    for before, after in itertools.pairwise(points):
        assert torch.equal(after, before.cos())
