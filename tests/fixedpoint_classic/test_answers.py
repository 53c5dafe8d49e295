"""The answers against independent ones: SciPy, coordinate descent, closed forms, what is known of each problem."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.core.options import OptionError
from fixedpoint_classic.bratu import Bratu
from fixedpoint_classic.cp_als import CPALS
from fixedpoint_classic.elastic_net import ElasticNet
from fixedpoint_classic.gaussian_mixture import GaussianMixtureEM
from fixedpoint_classic.h_equation import HEquation
from fixedpoint_classic.linear import LinearContraction
from fixedpoint_classic.newton import newton, picard
from fixedpoint_classic.nnls import NNLS
from fixedpoint_classic.pagerank import PageRank
from fixedpoint_classic.poisson_mixture import PoissonMixtureEM
from fixedpoint_classic.power_iteration import PowerIteration
from fixedpoint_classic.problem import apply
from fixedpoint_classic.tanh_cell import TanhCell
from fixedpoint_classic.value_iteration import ValueIteration

SEEDS = st.integers(0, 2**32 - 1)


@given(rows=st.integers(1, 4), shape=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=SEEDS)
def test_apply_is_the_matrix_product(rows, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    z = torch.randn(rows, shape[1], generator=generator, dtype=torch.float64)
    assert torch.allclose(apply(matrix, z), (matrix @ z.unsqueeze(2)).squeeze(2), rtol=1e-12, atol=1e-12)
    assert torch.allclose(apply(matrix[0], z), z @ matrix[0].T, rtol=1e-12, atol=1e-12)


def test_apply_in_parts_is_apply_whole():
    matrix = torch.randn(700, 900, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.randn(3, 900, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(apply(matrix, z)[1:2], apply(matrix, z[1:2]))
    assert torch.equal(apply(matrix, z), (matrix * z.unsqueeze(1)).sum(-1))
    # Of another layout the product would be summed in another order.
    assert torch.equal(apply(matrix.T.contiguous().T, z), apply(matrix, z))
    assert torch.equal(apply(matrix, z.T.contiguous().T), apply(matrix, z))


@pytest.mark.parametrize("lam", [1.0, 6.0, 6.7])
def test_bratu_is_what_scipys_sparse_newton_finds(lam):
    size = 15
    line = scipy.sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(size, size))
    laplacian = (scipy.sparse.kronsum(line, line) * (size + 1) ** 2).tocsc()
    u = np.zeros(size * size)
    for _ in range(30):
        jacobian = laplacian - scipy.sparse.diags(lam * np.exp(u))
        u = u - scipy.sparse.linalg.spsolve(jacobian.tocsc(), laplacian @ u - lam * np.exp(u))
    for form in ("picard", "jacobi"):
        problem = Bratu(size=size, lam=(lam,), form=form).build(0)
        exact = problem.reference()
        assert torch.allclose(exact[0], torch.from_numpy(u), rtol=1e-9)
        assert torch.allclose(problem(exact), exact, rtol=1e-12)
        grid = exact.view(size, size)
        assert torch.allclose(grid, grid.T, rtol=1e-10)
        assert torch.allclose(grid, grid.flip(0), rtol=1e-10)


@settings(max_examples=10)
@given(size=st.integers(2, 40), radius=st.floats(0.0, 0.99), seed=SEEDS)
@pytest.mark.parametrize("spectrum", ["semicircle", "uniform", "positive"])
def test_linear_maps_have_the_spectrum_asked_for(spectrum, size, radius, seed):
    task = LinearContraction(size=size, radius=radius, spectrum=spectrum)
    matrix = task.build(seed).matrix[0]
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert torch.equal(matrix, matrix.T)
    assert float(eigenvalues.abs().max()) == pytest.approx(radius, abs=1e-12)
    if spectrum == "positive":
        assert float(eigenvalues.min()) >= -1e-12
    # The eigenvalues of a matrix far from normal are too sensitive to be computed, but not the sums of their powers.
    apart = replace(task, departure=2.0).build(seed).matrix[0]
    assert not torch.allclose(apart, apart.T, atol=1e-3)
    for power in (1, 2, 3):
        expected = float(eigenvalues.pow(power).sum())
        assert float(torch.linalg.matrix_power(apart, power).trace()) == pytest.approx(expected, abs=1e-9)


def test_a_map_far_from_normal_grows_before_it_falls():
    def growth(departure):
        problem = LinearContraction(size=50, radius=0.9, departure=departure).build(1)
        errors = fixedpoint.solve(problem, solver="picard", rtol=1e-6).trace.error[:, 0]
        return errors.max() / errors[0]

    assert growth(0.0) == 1.0
    assert growth(5.0) > 3.0


def test_a_tanh_cell_is_what_scipys_hybrid_method_finds():
    problem = TanhCell(size=40).build(88)
    weight, offset = problem.weight[0].numpy(), problem.offset[0].numpy()
    exact = problem.reference()[0].numpy()
    near = exact + 0.01 * np.random.default_rng(0).standard_normal(40)
    found = scipy.optimize.root(lambda z: z - np.tanh(weight @ z + offset), near, tol=1e-13)
    assert found.success
    np.testing.assert_allclose(found.x, exact, rtol=1e-9, atol=1e-11)


def test_newton_halves_steps_that_go_too_far():
    """From the far side of a steep cell the full step does not lower the residual."""
    problem = TanhCell(size=1, gain=0.0).build(0)
    problem.weight.fill_(-30.0)
    problem.offset.fill_(1.0)
    found = newton(problem, torch.full((1, 1), 0.9, dtype=torch.float64))
    assert torch.allclose(problem(found), found, atol=1e-14)


@settings(max_examples=15)
@given(size=st.integers(1, 30), correlation=st.floats(0.0, 0.95), seed=SEEDS)
def test_nnls_is_what_scipy_finds(size, correlation, seed):
    problem = NNLS(size=size, samples=2 * size + 5, correlation=correlation).build(seed)
    root = torch.linalg.cholesky(problem.gram[0]).T  # Q = R^T R, and c = R^T (R^-T c)
    target = torch.linalg.solve_triangular(root.T, problem.rhs[0].unsqueeze(1), upper=False).squeeze(1)
    expected, _ = scipy.optimize.nnls(root.numpy(), target.numpy())
    exact = problem.reference()
    np.testing.assert_allclose(exact[0].numpy(), expected, rtol=1e-7, atol=1e-9)
    assert float(exact.min()) >= 0
    assert float(problem.checks(exact)["kkt_defect"].amax()) <= 1e-11
    assert float(problem.checks(exact + 1)["kkt_defect"].amax()) > 1e-2


def coordinate_descent(problem, sweeps: int = 20000) -> np.ndarray:
    """Friedman, Hastie & Tibshirani 2010, eq. 5."""
    gram, rhs = problem.gram[0].numpy(), problem.rhs[0].numpy()
    l1, l2 = float(problem.l1), float(problem.l2)
    x = np.zeros(len(rhs))
    for _ in range(sweeps):
        before = x.copy()
        for j in range(len(x)):
            partial = rhs[j] - gram[j] @ x + gram[j, j] * x[j]
            x[j] = np.sign(partial) * max(abs(partial) - l1, 0) / (gram[j, j] + l2)
        if np.abs(x - before).max() <= 1e-15:
            break
    return x


@settings(max_examples=10)
@given(size=st.integers(1, 25), strength=st.floats(0.02, 0.8), seed=SEEDS)
def test_the_elastic_net_is_what_coordinate_descent_finds(size, strength, seed):
    problem = ElasticNet(size=size, samples=15, strength=strength, correlation=0.3).build(seed)
    exact = problem.reference()
    np.testing.assert_allclose(exact[0].numpy(), coordinate_descent(problem), rtol=1e-6, atol=1e-10)
    assert float(problem.checks(exact)["kkt_defect"].amax()) <= 1e-11
    assert float(problem.checks(exact + 1)["kkt_defect"].amax()) > 1e-2


def test_the_lasso_of_more_unknowns_than_samples():
    problem = ElasticNet(size=120, samples=40, l2=0.0, correlation=0.0).build(1)
    exact = problem.reference()
    assert 0 < int((exact != 0).sum()) < 40
    assert float(problem.checks(exact)["kkt_defect"].amax()) <= 1e-11


def test_an_answer_of_zero_has_an_absolute_error():
    problem = NNLS(size=2, samples=5).build(0)
    zero = torch.zeros_like(problem.start)
    assert problem.error(zero, zero).tolist() == [0.0]
    assert problem.error(zero + 3, zero).tolist() == pytest.approx([18**0.5])


@settings(max_examples=10)
@given(states=st.integers(2, 30), actions=st.integers(1, 4), discount=st.floats(0.0, 0.95), seed=SEEDS)
def test_no_policy_is_worth_more_than_the_optimal_one(states, actions, discount, seed):
    task = ValueIteration(states=states, actions=actions, branching=2, discount=discount)
    problem = task.build(seed)
    assert torch.allclose(problem.probabilities.sum(-1), torch.ones(1, dtype=torch.float64), atol=1e-12)
    assert float(problem.probabilities.min()) >= 0
    optimal = problem.reference()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        policy = torch.randint(actions, (1, states), generator=generator)
        assert bool((problem.policy_values(policy) <= optimal + 1e-10).all())
    x, y = (torch.randn(1, states, generator=generator, dtype=torch.float64) for _ in range(2))
    assert float((problem(x) - problem(y)).abs().max()) <= discount * float((x - y).abs().max()) + 1e-12


@settings(max_examples=12)
@given(
    pages=st.integers(2, 40),
    links=st.integers(1, 6),
    graph=st.sampled_from(["random", "preferential"]),
    damping=st.floats(0.0, 0.99),
    seed=SEEDS,
)
def test_ranks_are_a_distribution(pages, links, graph, damping, seed):
    problem = PageRank(pages=pages, links=links, graph=graph, damping=damping).build(seed)
    assert torch.allclose(problem.inflow.sum(1), torch.ones(1, dtype=torch.float64), atol=1e-12)
    exact = problem.reference()
    assert float(exact.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(exact.min()) >= (1 - damping) / pages - 1e-12
    assert torch.allclose(problem(exact), exact, rtol=1e-12)
    assert float(problem.checks(problem(problem.initial()))["mass_defect"].amax()) <= 1e-14


@settings(max_examples=12)
@given(size=st.integers(2, 40), gap=st.floats(0.01, 0.9), seed=SEEDS)
def test_the_dominant_eigenvector(size, gap, seed):
    problem = PowerIteration(size=size, gap=gap).build(seed)
    exact = problem.reference()
    product = (problem.matrix[0] @ exact[0]).unsqueeze(0)
    assert torch.allclose(product, exact, atol=1e-12)  # the largest eigenvalue is 1
    assert float(exact.norm()) == pytest.approx(1.0, rel=1e-12)
    assert float(torch.linalg.eigvalsh(problem.matrix[0])[-2]) == pytest.approx(1 - gap, rel=1e-9)
    assert float((exact * problem.start).sum()) >= 0
    assert float(problem.error(-exact, exact)) == 0.0
    assert float(problem.checks(3 * exact)["eigen_defect"]) <= 1e-12


@settings(max_examples=8)
@given(components=st.integers(1, 3), dimension=st.integers(1, 3), seed=SEEDS)
def test_em_never_lowers_the_likelihood_and_keeps_weights_normalised(components, dimension, seed):
    problem = GaussianMixtureEM(components=components, dimension=dimension, samples=200).build(seed)
    z = problem.initial()
    likelihood = problem.log_likelihood(z)
    for _ in range(20):
        z = problem(z)
        assert float(z[:, :components].logsumexp(1)) == pytest.approx(0.0, abs=1e-12)
        assert bool((problem.log_likelihood(z) >= likelihood - 1e-12).all())
        likelihood = problem.log_likelihood(z)


def test_one_gaussian_is_fitted_by_its_moments():
    problem = GaussianMixtureEM(components=1, dimension=2, samples=50).build(0)
    data = problem.data[0]
    expected = torch.cat((torch.zeros(1), data.mean(1), data.var(1, correction=0).log()))
    assert torch.allclose(problem(problem.initial())[0], expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=8)
@given(weight=st.floats(0.2, 0.8), seed=SEEDS)
def test_em_of_poissons_keeps_the_mean_and_finds_what_was_drawn(weight, seed):
    problem = PoissonMixtureEM(data="synthetic", weight=weight, means=(1.0, 12.0), samples=4000).build(seed)
    found = picard(problem, 300)
    assert float(problem.checks(found)["mean_defect"]) <= 1e-12
    assert found[0].tolist() == pytest.approx([weight, 1.0, 12.0], abs=0.5)
    assert float(problem.error(torch.stack((1 - found[:, 0], found[:, 2], found[:, 1]), 1), found)) <= 1e-15


def test_collinear_columns_make_a_swamp():
    def rounds(collinearity):
        problem = CPALS(sizes=(6, 6, 6), rank=2, collinearity=collinearity, batch=3).build(0)
        termination = fixedpoint.Termination(rtol=1e-6, max_rounds=5000, patience=5000)
        solution = fixedpoint.solve(problem, solver="picard", termination=termination)
        assert float(problem.error(solution.state, problem.truth).max()) <= 1e-3
        return solution.counts.rounds

    assert rounds(0.85) > 4 * rounds(0.1)


def test_factors_are_of_unit_length_and_reproduce_the_tensor():
    problem = CPALS(sizes=(4, 5, 6), rank=3, collinearity=0.3).build(2)
    a, b, c = problem.factors(problem(problem.truth))
    for factor in (a, b):
        assert torch.allclose(factor.norm(dim=2), torch.ones(1, dtype=torch.float64), rtol=1e-12)
    outer = sum(torch.einsum("i,j,k->ijk", a[0, r], b[0, r], c[0, r]) for r in range(3))
    assert torch.allclose(outer, problem.tensor[0], atol=1e-12)
    cosine = problem.factors(problem.truth)[2][0]
    assert float(cosine[0] @ cosine[1]) == pytest.approx(0.3, rel=1e-9)


REFUSED = [
    (HEquation, {"c": (1.5,)}, r"HEquation: c must be one or more numbers from 0 to 1, got \(1.5,\)"),
    (HEquation, {"c": ()}, "c must be one or more numbers"),
    (HEquation, {"size": 0}, "size must be at least 1, got 0"),
    (Bratu, {"lam": (7.0,)}, r"lam must be one or more numbers above 0 and at most 6.8, got \(7.0,\)"),
    (Bratu, {"form": "newton"}, "form must be one of 'picard', 'jacobi', got 'newton'"),
    (LinearContraction, {"radius": 1.0}, "radius must be less than 1.0, got 1.0"),
    (PoissonMixtureEM, {"means": (1.0,)}, r"means must be two different numbers above 0, got \(1.0,\)"),
    (ValueIteration, {"states": 3, "branching": 4}, "branching must be at most the number of states, 3, got 4"),
    (NNLS, {"size": 10, "samples": 5}, "samples must be at least the size, 10, got 5"),
    (CPALS, {"sizes": (2, 3, 4), "rank": 3}, r"sizes must be three numbers of at least the rank, 3, got \(2, 3, 4\)"),
    (PowerIteration, {"gap": 0.0}, "gap must be greater than 0"),
]


@pytest.mark.parametrize(("task", "options", "sentence"), REFUSED, ids=str)
def test_bad_options_are_refused_with_a_sentence(task, options, sentence):
    with pytest.raises(OptionError, match=sentence):
        task(**options)
