"""Anderson acceleration of type I: the multisecant formula, its safeguard, its restarts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fixedpoint import AndersonTypeOne, solve
from fixedpoint.testing.problems import affine_contraction, tanh_cell


@pytest.mark.parametrize("memory", [1, 3, 6])
def test_every_step_until_the_first_restart_is_the_multisecant_one(memory: int) -> None:
    """``z+ = f - dF (dZ^T dR)^{-1} dZ^T r`` (Fang & Saad 2009), with all differences so far."""
    problem = tanh_cell(size=10, rows=1, gain=1.1, seed=4)
    points: list[np.ndarray] = []
    values: list[np.ndarray] = []

    def f(z: torch.Tensor) -> torch.Tensor:
        value = problem(z)
        points.append(z[0].numpy().copy())
        values.append(value[0].numpy().copy())
        return value

    solver = AndersonTypeOne(memory=memory, regularisation=1e-8, dependence=1e-8)
    solve(f, problem.initial(), solver=solver, rtol=0.0, max_rounds=memory + 2, rows="independent")
    z, fz = np.array(points), np.array(values)
    residual = fz - z
    for k in range(1, memory + 1):
        dz, dr, df = (np.diff(a[: k + 1], axis=0).T for a in (z, residual, fz))
        expected = fz[k] - df @ np.linalg.solve(dz.T @ dr, dz.T @ residual[k])
        assert np.linalg.norm(points[k + 1] - expected) <= 1e-6 * np.linalg.norm(points[k + 1] - points[k])


def test_affine_maps_end_finitely_when_the_memory_covers_the_unknowns() -> None:
    problem = affine_contraction((0.9, 0.4, -0.6, 0.1), rows=3, seed=5)
    solution = solve(problem, solver=AndersonTypeOne(memory=6), rtol=1e-9)
    assert solution.converged.all()
    assert solution.counts.rounds <= 7


def test_a_nonexpansive_map_that_only_averaging_solves() -> None:
    """A rotation about its centre: plain iteration goes round for ever, the averaged step spirals in."""
    angle = torch.tensor(2.0, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    centre = torch.tensor([[2.0, -1.0]], dtype=torch.float64)

    def f(z: torch.Tensor) -> torch.Tensor:
        return (turn * (z - centre).unsqueeze(1)).sum(-1) + centre

    start = torch.zeros(1, 2, dtype=torch.float64)
    assert not solve(f, start, solver="picard", max_rounds=200).converged.any()
    assert solve(f, start, solver=AndersonTypeOne(), rtol=1e-10).converged.all()
    # With no trust in the accelerated steps what is left is the averaged iteration, which converges, too.
    cautious = AndersonTypeOne(safeguard=1e-12)
    assert solve(f, start, solver=cautious, rtol=1e-6, max_rounds=5000).converged.all()


def test_it_gets_through_where_the_map_is_not_smooth() -> None:
    """A projected gradient step of a box-constrained least-squares problem, kinks and all."""
    generator = torch.Generator().manual_seed(6)
    basis = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    target = torch.randn(1, 30, generator=generator, dtype=torch.float64)
    step = 1.0 / torch.linalg.matrix_norm(basis, 2) ** 2

    def f(z: torch.Tensor) -> torch.Tensor:
        return (z - step * (z @ basis.T - target) @ basis).clamp(0.0, 0.05)

    start = torch.zeros(1, 12, dtype=torch.float64)
    quick = solve(f, start, solver=AndersonTypeOne(), rtol=1e-10, max_rounds=3000)
    plain = solve(f, start, solver="picard", rtol=1e-10, max_rounds=3000)
    assert quick.converged.all()
    assert torch.allclose(quick.z, plain.z, atol=1e-8)
    assert quick.counts.rounds < plain.counts.rounds
