"""The problems have the answers they say they have."""

from __future__ import annotations

import math

import pytest
import torch

from fixedpoint import Picard
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.core.problem import HasTake, check_row_independence
from fixedpoint.testing.chain_bench import ChainBench
from fixedpoint.testing.chains import linear_chain, trajectory, wave_chain
from fixedpoint.testing.plain_bench import PlainBench
from fixedpoint.testing.problems import (
    DOTTIE,
    Affine,
    Cosine,
    HEquation,
    KnownProblem,
    PeriodTwo,
    RowProblem,
    affine_contraction,
    tanh_cell,
)
from fixedpoint.testing.wrappers import Counted, Mixed, Poisoned, Scaled, Tally, Walled

_PLAIN = PlainBench(Picard())
_EVERY = {**_PLAIN.family(), **_PLAIN.degenerate()}


def _norm(x):
    return torch.linalg.vector_norm(x, dim=1)


@pytest.mark.parametrize(
    "name", [name for name, problem in _EVERY.items() if isinstance(problem, KnownProblem | Cosine)]
)
def test_the_solution_is_a_fixed_point(name):
    problem = _EVERY[name]
    assert torch.allclose(problem(problem.solution), problem.solution, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", _EVERY)
def test_rows_are_independent_and_can_be_taken(name):
    problem = _EVERY[name]
    assert check_row_independence(problem).all()
    assert isinstance(problem, HasTake)
    rows = torch.tensor([2, 0])
    part = problem.take(rows)
    assert part.layout.rows == 2
    z = problem.initial()
    assert torch.equal(part.initial(), z[rows])
    assert torch.equal(part(z[rows]), problem(z)[rows])


@pytest.mark.parametrize("normal", [True, False])
def test_affine_maps_have_the_spectrum_and_norm_asked_for(normal):
    spectrum = (0.7, 0.5, -0.3, -0.6)
    problem = affine_contraction(spectrum, rows=3, normal=normal, bound=0.9, seed=5)
    for matrix in problem.matrix:
        eigenvalues = torch.linalg.eigvals(matrix).real.sort().values
        assert torch.allclose(eigenvalues, torch.tensor(sorted(spectrum), dtype=torch.float64), atol=1e-9)
        assert torch.allclose(matrix, matrix.T, atol=1e-12) == normal
        assert float(torch.linalg.matrix_norm(matrix, 2)) <= (0.7 if normal else 0.9) + 1e-12


def test_tanh_cells_have_the_gain_asked_for():
    for weight in tanh_cell(gain=0.6, seed=1).weight:
        assert math.isclose(float(torch.linalg.matrix_norm(weight, 2)), 0.6, rel_tol=1e-12)


def test_the_dottie_number_equals_its_cosine():
    assert math.cos(DOTTIE) == pytest.approx(DOTTIE, abs=2e-16)


def test_h_equation_mean_is_that_of_its_solution():
    c = torch.tensor([[0.3], [0.9]], dtype=torch.float64)
    problem = HEquation(torch.ones(2, 64, dtype=torch.float64), c)
    z = problem.initial()
    for _ in range(200):
        z = problem(z)
    assert torch.allclose(z.mean(dim=1), problem.mean, rtol=1e-12)


def test_period_two_goes_back_and_forth():
    z = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    problem = PeriodTwo(z, torch.zeros_like(z))
    assert torch.equal(problem(problem(z)), z)
    assert not torch.equal(problem(z), z)


def test_a_problem_in_another_dtype_keeps_its_answer_to_rounding():
    problem = affine_contraction((0.5, -0.2), seed=3).astype(torch.float32)
    assert problem.layout.dtype == torch.float32
    assert problem(problem.solution).dtype == torch.float32
    assert torch.allclose(problem(problem.solution), problem.solution, rtol=1e-5)


def _affine() -> Affine:
    return affine_contraction((0.5, -0.2, 0.1), rows=4, seed=4)


def test_a_scaled_problem_is_solved_by_the_scaled_solution():
    problem = _affine()
    scaled = Scaled(problem, 1e6)
    assert torch.allclose(scaled(1e6 * problem.solution), 1e6 * problem.solution, rtol=1e-12)
    assert torch.equal(scaled.initial(), 1e6 * problem.initial())


def test_a_poisoned_row_is_the_only_one():
    problem = Poisoned(_affine(), torch.tensor([False, True, False, False]), float("inf"), grace=1)
    z = problem.initial()
    assert problem(z).isfinite().all()
    assert problem(z).isfinite().all(dim=1).tolist() == [True, False, True, True]
    assert not problem.take(torch.tensor([1]))(z[1:2]).isfinite().all()


def test_a_wall_stands_where_it_is_said_to():
    problem = Walled(_affine(), 2.0)
    z = torch.tensor([[0.0, 0, 1.9], [0, 0, 2.1], [-2.1, 0, 0], [0, 0, 0]], dtype=torch.float64)
    assert problem(z).isfinite().all(dim=1).tolist() == [True, False, False, True]


def test_mixed_rows_come_from_their_own_problem():
    first, second = _affine(), Cosine(_affine().start)
    mask = torch.tensor([True, False, False, True])
    z = first.initial()
    mixed = Mixed(first, second, mask)
    assert torch.equal(mixed(z)[mask], second(z)[mask])
    assert torch.equal(mixed(z)[~mask], first(z)[~mask])
    assert torch.equal(mixed.take(torch.tensor([3]))(z[3:]), second(z)[3:])


def test_a_tally_counts_rows_by_their_number_in_the_whole():
    tally = Tally()
    problem = Counted(_affine(), tally)
    z = problem.initial()
    problem(z)
    problem.take(torch.tensor([2, 3])).take(torch.tensor([1]))(z[3:])
    assert tally.calls == 2
    assert tally.rows == {0: 1, 1: 1, 2: 1, 3: 2}
    assert tally.dtypes == {torch.float64}


@pytest.mark.parametrize("chain", [linear_chain(seed=1), wave_chain(seed=1)])
def test_a_trajectory_solves_the_joint_problem(chain):
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = ChainProblem(chain, start)
    states = trajectory(chain, start).flatten(1)
    assert torch.allclose(problem(states), states, rtol=1e-13, atol=1e-13)


def test_linear_chains_follow_their_closed_form():
    chain = linear_chain(length=5, rows=2, size=1, seed=2)
    start = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    products = [float(chain.slope[i + 1 :].prod()) for i in range(5)]
    expected = float(chain.slope.prod()) * start[:, 0] + sum(p * chain.shift[:, i, 0] for i, p in enumerate(products))
    assert torch.allclose(trajectory(chain, start)[:, -1, 0], expected, rtol=1e-13)


@pytest.mark.parametrize("bench", [PlainBench(Picard()), ChainBench(Picard())], ids=["plain", "chain"])
def test_contractions_are_solved_by_their_answers(bench):
    for name, problem in bench.contractions().items():
        answer = bench.answer(problem)
        assert torch.allclose(problem(answer), answer, rtol=1e-11, atol=1e-12), name


def test_contractions_have_the_lipschitz_constant_claimed():
    for name, problem in _PLAIN.contractions().items():
        assert isinstance(problem, RowProblem)
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            x, y = (torch.randn(problem.start.shape, generator=generator, dtype=torch.float64) for _ in range(2))
            assert bool((_norm(problem(x) - problem(y)) <= _PLAIN.bound * _norm(x - y) * (1 + 1e-12)).all()), name
