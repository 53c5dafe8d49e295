"""Broyden's method: the secant condition, a dense reference, and SciPy's answer."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from fixedpoint import Broyden, solve
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.testing.problems import HEquation, affine_contraction, tanh_cell


def _inverse_estimate(state) -> np.ndarray:
    """``H = -I + sum c d^T`` of the first row, dense."""
    left, right = (group[0].double() for group in state.history.columns)
    kept = torch.as_tensor(state.history.valid[0]).double().unsqueeze(1)
    return (-torch.eye(left.shape[1], dtype=torch.float64) + (kept * left).T @ right).numpy()


@pytest.mark.parametrize("memory", [1, 2, 3, 20])
def test_the_newest_secant_holds_however_small_the_memory(memory):
    problem = tanh_cell(size=8, rows=1, gain=1.3, seed=5)
    solver = Broyden(memory=memory)
    with torch.no_grad():
        f = Evaluator(problem)
        at = f(problem.initial())
        state = solver.init(f, at)
        for k in range(8):
            last_z, last_g = at.z[0].clone(), at.residual[0].clone()
            proposal, state = solver.step(f, at, state)
            at = f(proposal.clone())
            _, pushed = solver.step(f, at, state)
            dz, dg = (at.z[0] - last_z).numpy(), (at.residual[0] - last_g).numpy()
            gap = np.linalg.norm(_inverse_estimate(pushed) @ dg - dz)
            rounding = np.finfo(np.float64).eps * np.linalg.norm(last_z)  # of the point, which dz is the difference of
            assert gap <= 1e-10 * np.linalg.norm(dz) + rounding, f"after {k + 1} updates"
            # that step has pushed a pair in place; go on from it
            proposal, state = _without_pushing_again(solver, f, at, pushed)
            at = f(proposal.clone())
            state = pushed


def _without_pushing_again(solver, f, at, state):
    left, right = state.history.columns
    weights = (right[0] @ at.residual[0]) * torch.as_tensor(state.history.valid[0])
    return at.z + at.residual - (weights @ left[0]).unsqueeze(0), state


@pytest.mark.parametrize("size", [3, 8])
def test_with_enough_memory_the_points_are_those_of_the_dense_method(size):
    problem = tanh_cell(size=size, rows=1, gain=1.2, seed=6)
    points = []

    def f(z):
        points.append(z[0].numpy().copy())
        return problem(z)

    solve(f, problem.initial(), solver=Broyden(memory=50), rtol=1e-7, rows="independent")

    def g(z):
        return problem(torch.from_numpy(z).unsqueeze(0))[0].numpy() - z

    inverse, z = -np.eye(size), points[0]
    for k in range(len(points)):
        assert np.linalg.norm(points[k] - z) <= 1e-7 * max(np.linalg.norm(z), 1.0), f"point {k}"
        moved = z - inverse @ g(z)
        dz, dg = moved - z, g(moved) - g(z)
        v = inverse.T @ dz
        inverse = inverse + np.outer(dz - inverse @ dg, v) / (v @ dg)
        z = moved


@pytest.mark.parametrize("size", [1, 2, 3])
def test_affine_maps_end_within_twice_the_unknowns(size):
    # Gay 1979, "Some convergence properties of Broyden's method": at most 2 D steps on affine maps.
    problem = affine_contraction(np.linspace(-0.6, 0.8, size), rows=2, seed=size)
    solution = solve(problem, solver=Broyden(memory=50), rtol=1e-9)
    assert solution.converged.all()
    assert solution.counts.rounds <= 2 * size + 2


@pytest.mark.parametrize("normal", [True, False])
def test_contractions_are_solved_with_fewer_pairs_than_unknowns(normal):
    # A few of these rows would end stalled, while their pairs displace one another.
    spectrum = [0.8, 0.6, 0.3, -0.2, -0.5, -0.7]
    for seed in range(5, 10):
        problem = affine_contraction(spectrum, rows=16, normal=normal, bound=0.8, seed=seed)
        for memory in (2, 3):
            assert solve(problem, solver=Broyden(memory=memory), rtol=1e-9).converged.all()


def test_the_answer_is_scipys():
    problem = tanh_cell(size=10, rows=1, gain=1.2, seed=2)

    def g(z):
        return (problem(torch.from_numpy(z).unsqueeze(0)) - torch.from_numpy(z)).squeeze(0).numpy()

    theirs = scipy.optimize.broyden1(g, problem.initial()[0].numpy(), f_tol=1e-12, alpha=-1.0)
    ours = solve(problem, solver=Broyden(), rtol=1e-12)
    assert np.allclose(ours.z[0].numpy(), theirs, atol=1e-9)
    assert np.allclose(ours.z[0].numpy(), problem.solution[0].numpy(), atol=1e-9)


def test_h_equation_near_the_singular_limit():
    c = torch.tensor([[0.99], [1 - 1e-10]], dtype=torch.float64)
    problem = HEquation(torch.ones(2, 128, dtype=torch.float64), c)
    solution = solve(problem, solver=Broyden(), rtol=1e-10, max_rounds=60)
    assert solution.converged.all()
    assert abs(float(solution.z[0].mean() - problem.mean[0])) < 1e-8


def test_a_map_without_a_secant_is_left_alone():
    # f(z) = z + 1: the residual never changes, so every denominator is zero.
    solution = solve(lambda z: z + 1, torch.zeros(1, 3, dtype=torch.float64), solver=Broyden(), atol=1e-9)
    assert solution.status[0].label == "stalled"
    assert torch.isfinite(solution.z).all()
