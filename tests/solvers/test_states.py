"""Any state: tuples and dicts as their raveled form, numpy and floats as such, narrow dtypes to their floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from draws import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint import Anderson, Broyden, Picard, Status, find_root, solve
from fixedpoint.registry import registry
from fixedpoint.testing.problems import DOTTIE, tanh_cell
from fixedpoint.testing.strategies import affine_contractions, cuts, dtypes

SOLVERS = [
    Picard(),
    Picard(relaxation=0.7),
    Anderson(),
    Anderson(memory=2, relaxation=0.8),
    Broyden(),
    Broyden(memory=2),
]


@examples(15, 40)
@given(st.data())
def test_a_state_in_pieces_is_solved_as_the_same_state_in_one(data):
    dtype = data.draw(dtypes, label="dtype")
    problem = data.draw(affine_contractions(), label="problem").astype(dtype)
    solver = data.draw(st.sampled_from(SOLVERS), label="solver")
    cut = data.draw(cuts(problem.layout.size), label="cut")

    def f(value):
        return cut.apply(problem(cut.ravel(value)))

    whole = solve(problem.__call__, problem.initial(), solver=solver, rows="independent", rtol=1e-6)
    pieces = solve(f, cut.apply(problem.initial()), solver=solver, rows="independent", rtol=1e-6)
    assert torch.equal(cut.ravel(pieces.z), whole.z)
    assert torch.equal(cut.ravel(pieces.fz), whole.fz)
    assert pieces.status == whole.status
    assert pieces.evaluations.tolist() == whole.evaluations.tolist()


@examples(12, 30)
@given(st.data())
def test_rows_solved_together_are_solved_alone(data):
    problem = data.draw(affine_contractions(bound=0.95), label="problem")
    solver = data.draw(st.sampled_from(SOLVERS), label="solver")
    together = solve(problem, solver=solver, rtol=1e-10, max_rounds=60)
    for row in range(problem.layout.rows):
        alone = solve(problem.take(torch.tensor([row])), solver=solver, rtol=1e-10, max_rounds=60)
        assert torch.equal(alone.z[0], together.z[row])
        assert alone.status[0] == together.status[row]
        assert alone.evaluations[0] == together.evaluations[row]


@settings(max_examples=30)
@given(st.data())
def test_contractions_are_solved_to_their_answers(data):
    problem = data.draw(affine_contractions(bound=0.8), label="problem")
    solver = data.draw(st.sampled_from(SOLVERS), label="solver")
    solution = solve(problem, solver=solver, rtol=1e-9, atol=1e-12)
    assert solution.converged.all()
    distance = torch.linalg.vector_norm(solution.z - problem.solution, dim=1)
    tolerance = 1e-12 + 1e-9 * torch.linalg.vector_norm(problem.solution, dim=1)
    assert bool((distance <= 1.01 * tolerance / (1 - 0.8)).all())


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rtol", [1e-2, 1e-12])
def test_narrow_dtypes_end_with_a_status_at_the_best_they_reach(dtype, solver, rtol):
    problem = tanh_cell(size=24, rows=3, gain=0.8, seed=9).astype(dtype)
    solution = solve(problem, solver=solver, rtol=rtol)
    assert solution.z.dtype == dtype
    assert solution.fz.dtype == dtype
    assert torch.isfinite(solution.z).all()
    assert solution.counts.rounds < 500
    floor = 32 * torch.finfo(dtype).eps
    assert (solution.relative_error <= max(rtol, floor)).all()
    if rtol == 1e-2:
        assert solution.converged.all()
    for row, status in enumerate(solution.status):
        assert status in (Status.CONVERGED, Status.STALLED)
        if status is Status.STALLED:
            assert float(solution.error[row]) == np.nanmin(solution.trace.error[:, row])
            assert "asks for more than the dtype can give" in status.sentence


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numpy_in_numpy_out(solver, dtype):
    seen = []

    def f(z):
        seen.append(type(z))
        return np.cos(z)

    z0 = np.linspace(0, 1, 6, dtype=dtype).reshape(2, 3)
    kept = z0.copy()
    solution = solve(f, z0, solver=solver, rtol=1e-5)
    assert set(seen) == {np.ndarray}
    assert isinstance(solution.z, np.ndarray)
    assert isinstance(solution.fz, np.ndarray)
    assert solution.z.dtype == dtype
    assert np.allclose(solution.z, DOTTIE, atol=1e-4)
    assert np.array_equal(z0, kept)
    assert len(solution.status) == 2


def test_a_numpy_vector_is_one_problem():
    matrix = np.array([[0.5, 0.2], [-0.1, 0.3]])
    offset = np.array([1.0, 2.0])
    solution = solve(lambda z: matrix @ z + offset, np.zeros(2), rtol=1e-12)
    assert solution.z.shape == (2,)
    assert len(solution.status) == 1
    assert np.allclose(solution.z, np.linalg.solve(np.eye(2) - matrix, offset), rtol=1e-10)


def test_a_float_is_one_problem():
    solution = solve(math.cos, 1.0, rtol=1e-12)
    assert isinstance(solution.z, float)
    assert solution.z == pytest.approx(DOTTIE, rel=1e-11)


def test_coupled_rows_are_solved_jointly():
    z0 = torch.zeros(4, 2, dtype=torch.float64)

    def f(z):  # every row requires the mean of all
        return 0.5 * z.mean(dim=0, keepdim=True) + torch.arange(8.0, dtype=torch.float64).reshape(4, 2)

    solution = solve(f, z0, rows="joint", rtol=1e-10)
    assert solution.converged.tolist() == [True]
    assert solution.z.shape == (4, 2)
    assert torch.allclose(f(solution.z), solution.z, rtol=1e-9)


ROOTS = {
    "a tensor": (torch.tensor([[1.0, 2.0]], dtype=torch.float64), lambda z: 2 - z * z, math.sqrt(2)),
    "an array": (np.array([1.0, 2.0]), lambda z: 2 - z * z, math.sqrt(2)),
    "a float": (1.0, lambda z: math.exp(-z) - z, 0.5671432904097838),
    "a tuple": ((torch.ones(1, 1), torch.ones(1, 2)), lambda z: (3 - z[0] ** 2, 3 - z[1] ** 2), math.sqrt(3)),
    "a list": ([np.ones((2, 1))], lambda z: [3 - z[0] ** 2], math.sqrt(3)),
    "a dict": ({"a": np.ones((2, 1))}, lambda z: {"a": 3 - z["a"] ** 2}, math.sqrt(3)),
}


@pytest.mark.parametrize("name", ROOTS)
def test_roots_are_found_in_the_structure_of_the_start(name):
    z0, g, root = ROOTS[name]
    solution = find_root(g, z0, rtol=1e-6)
    assert solution.converged.all()
    found = solution.z
    assert type(found) is type(z0)
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, tuple | list) else [found]
    for part in parts:
        assert np.allclose(np.asarray(part), root, rtol=1e-5)


def test_the_sign_decides_what_plain_iteration_does():
    def gradient(z):
        return z - 3.0

    z0 = torch.zeros(1, 2, dtype=torch.float64)
    assert not find_root(gradient, z0, solver="picard").converged.any()
    descended = find_root(gradient, z0, solver="picard", sign=-0.5)
    assert descended.converged.all()
    assert torch.allclose(descended.z, torch.full_like(z0, 3.0), rtol=1e-5)
    with pytest.raises(ValueError, match="sign must not be zero"):
        find_root(gradient, z0, sign=0.0)


@pytest.mark.parametrize(
    "name", [n for n, entry in registry.components("solver").items() if "chain" not in entry.load().needs]
)
@pytest.mark.parametrize("solved", [False, True])
def test_the_start_stays_the_users(name: str, solved: bool) -> None:
    """Neither written into, nor shared with the solution, nor reached by a function that writes into its argument."""
    start = torch.full((2, 3), DOTTIE if solved else 0.2, dtype=torch.float64)
    before = start.clone()
    solution = solve(torch.cos, start, solver=name, rtol=1e-6)
    assert torch.equal(start, before)
    for part in (solution.z, solution.state, solution.fstate):
        part.fill_(9.0)
    assert torch.equal(start, before)

    def rude(z: torch.Tensor) -> torch.Tensor:
        z.mul_(0.5)
        return torch.cos(z)

    with pytest.raises(ValueError, match="f changed its argument in place"):
        solve(rude, start, solver=name)
    assert torch.equal(start, before)
