"""The maps of ``benchmarks/maps.py``: starts, seeds, reference solutions, and what was published of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from map_suite import _FAMILIES as FAMILIES
from map_suite import STARTS, Map, all_maps, cell, mixtures, power_flow, relative_residual
from sklearn.datasets import load_iris

COMPULSORY = """
h-equation bratu linear-contraction tanh-cell poisson-mixture-em gaussian-mixture-em value-iteration pagerank
power-iteration nnls elastic-net cp-als em-iris em-hmm-2 k-means-soft k-means-hard sinkhorn-digits blp rust-bus
endogenous-grid hartree-fock-heh belief-propagation newton-schulz-root pagerank-karate lasso-diabetes
logistic-cancer gauss-seidel-poisson gauss-seidel-bratu growth-euler equilibrium-cell power-flow-14 cavity
"""

MAPS = {made.name: made for made in all_maps()}


@pytest.fixture(params=MAPS)
def made(request: pytest.FixtureRequest) -> Map:
    return MAPS[request.param]


def test_there_are_enough_and_those_that_must_be_there() -> None:
    assert len(MAPS) == len(all_maps()) >= 30
    assert set(COMPULSORY.split()) <= set(MAPS)


def test_the_reference_is_a_fixed_point(made: Map) -> None:
    assert relative_residual(made.vector, made.solution) < 1e-10


def test_the_starts_are_points_of_the_domain_far_from_solved(made: Map) -> None:
    assert len(made.starts) == len(STARTS) == 3
    for z in made.starts:
        assert z.shape == made.solution.shape
        assert z.dtype == np.float64
        assert relative_residual(made.vector, z) > 1e-6
        assert np.isfinite(made.vector(z)).all()
    assert not any(np.array_equal(a, b) for a, b in zip(made.starts, made.starts[1:], strict=False))


def test_a_call_repeats_and_leaves_its_argument_alone(made: Map) -> None:
    for name, z in zip(STARTS, made.starts, strict=True):
        kept, value = z.copy(), made.vector(z)
        assert np.array_equal(value, made.vector(z))
        assert np.array_equal(z, kept)
        np.testing.assert_array_equal(np.atleast_1d(np.asarray(made.f(made.start(name)))), value)


def test_seeds_reproduce() -> None:
    for family in FAMILIES:
        for again in family.maps():
            for z, before in zip(again.starts, MAPS[again.name].starts, strict=True):
                assert np.array_equal(z, before)
                assert np.array_equal(again.vector(z), MAPS[again.name].vector(z))


def test_the_hidden_markov_models_are_the_published_ones() -> None:
    """Zucchini & MacDonald 2009, tables 4.1 and 4.2: the means that EM finds, and the probabilities to stay."""
    for states, means, stay in ((2, [15.421, 26.018], [0.9284, 0.8810]), (3, [13.134, 19.713, 29.710], [0.9393])):
        found = MAPS[f"em-hmm-{states}"].solution
        np.testing.assert_allclose(found[states**2 : -states], means, atol=1e-3)
        np.testing.assert_allclose(np.diag(found[: states**2].reshape(states, states))[: len(stay)], stay, atol=1e-4)
    assert len(mixtures.EARTHQUAKES) == 107


def test_the_mixture_of_iris_has_the_published_likelihood() -> None:
    """Fraley & Raftery 2002, mclust: three Gaussians with covariances of their own (VVV) reach -180.19."""
    z, x = MAPS["em-iris"].solution, load_iris().data
    weights, means, covariances = z[:3], z[3:15].reshape(3, 4), z[15:].reshape(3, 4, 4)
    total = np.zeros(len(x))
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        distance = ((x - mean) @ np.linalg.inv(covariance) * (x - mean)).sum(1)
        total += weight * np.exp(-distance / 2) / np.sqrt(np.linalg.det(2 * np.pi * covariance))
    assert np.log(total).sum() == pytest.approx(-180.19, abs=0.01)


def test_hartree_fock_has_the_published_density() -> None:
    """Szabo & Ostlund 1989, section 3.5.3: the density matrix at self-consistency."""
    np.testing.assert_allclose(MAPS["hartree-fock-heh"].solution, [1.2861, 0.5402, 0.5402, 0.2269], atol=1e-4)


def test_the_network_has_the_published_angles() -> None:
    _, angles = power_flow.voltages(MAPS["power-flow-14"].solution)
    np.testing.assert_allclose(angles, power_flow.ANGLES, atol=0.02)


def test_the_flow_in_the_cavity_is_near_the_published_one() -> None:
    """Ghia, Ghia & Shin 1982, table I: the centre of the vortex has the stream function -0.1034, on a finer grid."""
    z, n = MAPS["cavity"].solution, 15
    second = (np.eye(n, k=1) + np.eye(n, k=-1) - 2 * np.eye(n)) * (n + 1) ** 2
    stream = np.linalg.solve(np.kron(second, np.eye(n)) + np.kron(np.eye(n), second), -z)
    assert stream.min() == pytest.approx(-0.1034, rel=0.15)


def test_the_published_optimum_of_growth() -> None:
    """Brock & Mirman 1972: from the fixed point of value iteration, the choice is ``alpha beta k^alpha``."""
    made, alpha, beta = MAPS["value-iteration-growth"], 1 / 3, 0.95
    steady = (alpha * beta) ** (1 / (1 - alpha))
    stock = np.linspace(0.5 * steady, 1.5 * steady, 200)
    slope = alpha * (1 - beta) / (1 - alpha * beta)
    fit = np.polyfit(np.log(stock), made.solution, 1)
    assert fit[0] == pytest.approx(slope, rel=2e-2)


def test_the_trained_cell_recognises_digits() -> None:
    assert cell.accuracy() > 0.8
