"""Anderson acceleration against published counts, a least-squares reference, and theory."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint import Anderson, Termination, solve
from fixedpoint.core.history import History
from fixedpoint.core.options import OptionError
from fixedpoint.testing.problems import HEquation, affine_contraction, tanh_cell
from fixedpoint.testing.wrappers import Scaled

# Toth & Kelley 2015, "Convergence analysis for Anderson acceleration", table for c = 0.99.
PUBLISHED = {1: 11, 2: 10, 3: 10, 4: 11, 5: 12, 6: 12}


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("memory", PUBLISHED)
def test_h_equation_takes_the_published_evaluations_at_every_scale(memory, scale):
    c = torch.full((1, 1), 0.99, dtype=torch.float64)
    problem = HEquation(torch.ones(1, 512, dtype=torch.float64), c)
    solution = solve(
        Scaled(problem, scale),
        solver=Anderson(memory=memory),
        termination=Termination(rtol=1e-8, atol=1e-8 * scale, relative_to="start"),
    )
    assert solution.converged.all()
    assert solution.evaluations.tolist() == [PUBLISHED[memory]]
    exact = 2 * (1 - np.sqrt(1 - 0.99)) / 0.99
    assert float(solution.z.mean()) / scale == pytest.approx(exact, abs=1e-8)


def _combined(points: np.ndarray, values: np.ndarray, memory: int) -> tuple[np.ndarray, np.ndarray]:
    """Walker & Ni's combined value and its residual, the small problem solved by an orthogonal factorisation."""
    residuals = values - points
    used = slice(max(len(points) - 1 - memory, 0), None)
    changes_f, changes_r = np.diff(values, axis=0)[used].T, np.diff(residuals, axis=0)[used].T
    if changes_r.shape[1] == 0:
        return values[-1], residuals[-1]
    gamma = np.linalg.lstsq(changes_r, residuals[-1], rcond=None)[0]
    return values[-1] - changes_f @ gamma, residuals[-1] - changes_r @ gamma


def _watched(problem):
    points, values = [], []

    def f(z):
        value = problem(z)
        points.append(z[0].numpy().copy())
        values.append(value[0].numpy().copy())
        return value

    return f, points, values


@pytest.mark.parametrize("relaxation", [1.0, 0.5])
@pytest.mark.parametrize("memory", [1, 2, 4, 7])
def test_every_step_equals_the_least_squares_reference(memory, relaxation):
    problem = tanh_cell(size=12, rows=1, gain=1.3, seed=4)
    f, points, values = _watched(problem)
    solve(f, problem.initial(), solver=Anderson(memory=memory, relaxation=relaxation), rtol=1e-5, rows="independent")
    assert len(points) > memory + 3
    for k in range(1, len(points)):
        value, rest = _combined(np.array(points[:k]), np.array(values[:k]), memory)
        error = np.linalg.norm(points[k] - (value - (1 - relaxation) * rest))
        step = np.linalg.norm(points[k] - points[k - 1])
        assert error <= 1e-6 * step, f"step {k}"


@pytest.mark.parametrize("adaptive", ["gain", "distance"])
@pytest.mark.parametrize("relaxation", [1.0, 0.8])
def test_the_relaxation_adapts_by_the_published_rules(adaptive, relaxation):
    problem = tanh_cell(size=12, rows=1, gain=1.3, seed=4)
    f, points, values = _watched(problem)
    solver = Anderson(memory=3, relaxation=relaxation, adaptive=adaptive)
    solve(f, problem.initial(), solver=solver, rtol=1e-5, rows="independent")
    mean = change = last = 1.0
    used, seen = [], []
    for k in range(1, len(points)):
        value, rest = _combined(np.array(points[:k]), np.array(values[:k]), 3)
        residual = values[k - 1] - points[k - 1]
        if adaptive == "gain":
            gain = np.linalg.norm(rest) / np.linalg.norm(residual)
            beta = relaxation * (1.0 if k == 1 else 0.9 - gain / 2)
        else:
            if k > 1:
                combined = points[k - 1] - used[-1] * seen[-1]
                wanted = seen[-1] @ (values[k - 1] - combined) / (seen[-1] @ seen[-1])
                change = 0.8 * change + 0.2 * (wanted - last) ** 2
                mean = 0.9 * mean + 0.1 * wanted
                last = wanted
            doubt = min(change**0.5, 1.0)
            beta = relaxation * (doubt + (1 - doubt) * mean)
        error = np.linalg.norm(points[k] - (value - (1 - beta) * rest))
        assert error <= 1e-6 * np.linalg.norm(points[k] - points[k - 1]), f"step {k}"
        used.append(beta)
        seen.append(rest)
    assert len({round(beta, 3) for beta in used}) > 5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_mix_each_for_itself(seed):
    left, right = tanh_cell(size=9, rows=2, gain=1.3, seed=seed), tanh_cell(size=4, rows=2, gain=0.8, seed=seed + 50)
    together = solve(
        lambda z: {"left": left(z["left"]), "right": right(z["right"])},
        {"left": left.initial(), "right": right.initial()},
        solver=Anderson(memory=3, mixing="block"),
        rtol=0.0,
        max_rounds=9,
    )
    apart = [solve(problem, solver=Anderson(memory=3), rtol=0.0, max_rounds=9) for problem in (left, right)]
    mixed = solve(
        lambda z: {"left": left(z["left"]), "right": right(z["right"])},
        {"left": left.initial(), "right": right.initial()},
        solver=Anderson(memory=3),
        rtol=0.0,
        max_rounds=9,
    )
    for name, alone in zip(("left", "right"), apart, strict=True):
        assert torch.allclose(together.z[name], alone.z, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(mixed.z[name], alone.z, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("normal", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_affine_maps_end_finitely_when_the_memory_covers_the_unknowns(size, normal):
    spectrum = np.linspace(-0.7, 0.8, size)
    problem = affine_contraction(spectrum, rows=3, normal=normal, bound=0.9, seed=size)
    solution = solve(problem, solver=Anderson(memory=size + 3), rtol=1e-9)
    # size differences require size + 1 evaluations; the next is at the solution, one more for the rounding before it
    assert solution.converged.all()
    assert solution.counts.rounds <= size + 3
    assert torch.allclose(solution.z, problem.solution, rtol=1e-7, atol=1e-8)


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.integers(1, 6))
def test_one_difference_solves_maps_with_one_eigenvalue(seed, size):
    problem = affine_contraction((0.9,) * size, rows=2, seed=seed)
    assert solve(problem, solver=Anderson(memory=1), rtol=1e-9).counts.rounds <= 4


def test_it_is_faster_than_plain_iteration_where_that_is_slow():
    spectrum = np.linspace(0.0, 0.99, 40)
    problem = affine_contraction(spectrum, rows=1, seed=1)
    accelerated, plain = (
        solve(problem, solver=solver, rtol=1e-8, max_rounds=5000) for solver in ("anderson", "picard")
    )
    assert accelerated.converged.all()
    assert plain.converged.all()
    assert accelerated.counts.rounds * 4 < plain.counts.rounds


def test_the_answer_is_scipys():
    problem = tanh_cell(size=10, rows=1, gain=1.2, seed=2)

    def g(z):
        return (problem(torch.from_numpy(z).unsqueeze(0)) - torch.from_numpy(z)).squeeze(0).numpy()

    theirs = scipy.optimize.anderson(g, problem.initial()[0].numpy(), f_tol=1e-12, alpha=1.0)
    ours = solve(problem, solver=Anderson(), rtol=1e-12)
    assert np.allclose(ours.z[0].numpy(), theirs, atol=1e-9)
    assert np.allclose(ours.z[0].numpy(), problem.solution[0].numpy(), atol=1e-9)


def test_a_row_whose_residual_explodes_starts_its_history_anew():
    calls = []

    def f(z):  # a cliff: beyond 30 the map throws a point far away, once
        calls.append(float(z))
        return torch.where((z > 30) & (z < 31), z + 1e5, 0.9 * z + 3 + 0.01 * torch.sin(z))

    solution = solve(f, torch.tensor([[0.0]], dtype=torch.float64), solver=Anderson(memory=1), rtol=1e-9)
    assert solution.converged.all()
    assert float(solution.error) <= 1e-9 * float(solution.z)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"memory": 0}, "Anderson: memory must be at least 1, got 0"),
        ({"relaxation": 0.0}, "Anderson: relaxation must be greater than 0.0, got 0.0"),
        ({"relaxation": 2.5}, "Anderson: relaxation must be at most 2.0, got 2.5"),
        ({"memory": 2.0}, "Anderson: memory must be an integer, got 2.0"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(OptionError) as caught:
        Anderson(**options)
    assert str(caught.value) == sentence


def test_a_ridge_is_relative_to_the_columns():
    """The same weights at every scale, and those of the regularised normal equations with unit columns."""
    problem = tanh_cell(size=9, rows=1, gain=1.3, seed=8)
    points, values = [], []

    def f(z):
        value = problem(z)
        points.append(z[0].numpy().copy())
        values.append(value[0].numpy().copy())
        return value

    solve(f, problem.initial(), solver=Anderson(memory=3, ridge=0.05), rtol=0.0, max_rounds=8, rows="independent")
    for k in range(2, 8):
        z, fz = np.array(points[:k]), np.array(values[:k])
        r = fz - z
        used = slice(max(k - 1 - 3, 0), None)
        changes_f, changes_r = np.diff(fz, axis=0)[used].T, np.diff(r, axis=0)[used].T
        length = np.linalg.norm(changes_r, axis=0)
        unit = changes_r / length
        gamma = np.linalg.solve(unit.T @ unit + 0.05 * np.eye(unit.shape[1]), unit.T @ r[-1]) / length
        expected = fz[-1] - changes_f @ gamma
        assert np.linalg.norm(points[k] - expected) <= 1e-8 * np.linalg.norm(points[k] - points[k - 1])
    counts = {solve(Scaled(problem, s), solver=Anderson(ridge=1e-3), rtol=1e-9).counts.rounds for s in (1e-6, 1.0, 1e6)}
    assert len(counts) == 1


def test_a_filter_drops_what_brings_nothing_new():
    """With the strictest filter only the newest column is left: Anderson with a memory of one."""
    problem = tanh_cell(size=9, rows=2, gain=1.3, seed=8)
    strict = solve(problem, solver=Anderson(memory=6, filter=0.999999), rtol=1e-9)
    single = solve(problem, solver=Anderson(memory=1), rtol=1e-9)
    assert (strict.rounds == single.rounds).all()
    assert torch.allclose(strict.z, single.z, rtol=1e-9)


def test_there_is_no_surprise_on_an_affine_contraction():
    problem = affine_contraction(np.linspace(-0.8, 0.9, 20), rows=3, seed=9)
    wary, plain = (solve(problem, solver=Anderson(memory=8, surprise=s), rtol=1e-6) for s in (1.5, None))
    assert torch.equal(wary.z, plain.z)


def test_a_surprise_makes_old_columns_go():
    """A map with a kink: what was learnt on one side misleads on the other."""

    def kinked(z):
        slopes = torch.tensor([0.95, -0.7, 0.6, 0.2, -0.9, 0.8], dtype=torch.float64)
        return torch.where(z < 1.0, slopes * z + 2.0, slopes.flip(0) * (z - 1.0) + 1.9)

    start = torch.full((3, 6), -40.0, dtype=torch.float64)
    wary, plain = (solve(kinked, start, solver=Anderson(memory=6, surprise=s), rtol=1e-8) for s in (1.5, None))
    assert wary.converged.all()
    assert wary.counts.rounds <= plain.counts.rounds


def test_forgetting_the_oldest_keeps_the_newest():
    history = History.empty(torch.zeros(2, 3), memory=4, groups=1)
    for value in range(6):
        history = history.push(torch.full((2, 3), float(value)), valid=torch.tensor([True, True]))
    forgetful = history.forget_oldest(torch.tensor([True, False]), 0.5)
    newest_first = list(forgetful.order)
    values = forgetful.columns[0][:, newest_first, 0]
    assert values[0].tolist() == [5.0, 4.0, 3.0, 2.0]
    assert forgetful.valid[0, newest_first].tolist() == [True, True, False, False]
    assert forgetful.valid[1].all()
    all_but_one = history.forget_oldest(torch.tensor([True, True]), 0.99)
    assert all_but_one.valid.sum(1).tolist() == [1, 1]
    assert all_but_one.valid[:, all_but_one.newest].all()
