"""The small least-squares problem of multisecant methods: one answer by every way, alone and in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint.solvers import least_squares
from fixedpoint.solvers.least_squares import WRITTEN_OUT, solve_gram, solve_small

COUNTS = [1, 2, 5, WRITTEN_OUT, WRITTEN_OUT + 1, 40]


def systems(rows: int, count: int, seed: int, dependent: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Columns, rows first, and right-hand sides; some columns nearly depend on newer ones if asked."""
    generator = np.random.default_rng(seed)
    columns = generator.standard_normal((rows, 2 * count + 3, count))
    if dependent:
        for j in range(0, count - 1, 3):
            columns[:, :, j + 1] = columns[:, :, j] + 1e-9 * columns[:, :, j + 1]
    columns *= 10.0 ** generator.integers(-6, 7, (rows, 1, count))
    return columns, generator.standard_normal((rows, 2 * count + 3))


def last(columns: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gram matrices and what belongs to them, rows last."""
    gram = np.einsum("bij,bik->jkb", columns, columns)
    rhs = np.einsum("bij,bi->jb", columns, target)
    return gram, rhs, np.ones(rhs.shape, dtype=np.bool_), np.zeros(rhs.shape[1])


@pytest.mark.parametrize("count", COUNTS)
def test_weights_are_those_of_an_orthogonal_factorisation(count: int) -> None:
    columns, target = systems(3, count, seed=count)
    gram, rhs, valid, noise = last(columns, target)
    found = solve_small(gram, rhs, valid, noise, range(count))
    for row in range(3):
        size = np.linalg.norm(columns[row], axis=0)
        wanted = np.linalg.lstsq(columns[row] / size, target[row], rcond=None)[0]
        np.testing.assert_allclose(found[:, row] * size, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_a_row_has_the_same_bits_alone_and_in_a_batch(count: int, dependent: bool) -> None:
    gram, rhs, valid, noise = last(*systems(5, count, seed=7 * count, dependent=dependent))
    valid[:, 2] = np.random.default_rng(1).random(count) < 0.7
    order = list(np.roll(range(count), count // 2))
    for threshold, ridge in ((0.0, 0.0), (0.05, 1e-3)):
        together = solve_small(gram, rhs, valid, noise, order, threshold, ridge)
        for row in range(5):
            own = slice(row, row + 1)
            alone = solve_small(gram[..., own], rhs[..., own], valid[..., own], noise[own], order, threshold, ridge)
            np.testing.assert_array_equal(alone[..., 0], together[..., row])
        assert (together[~valid] == 0).all()


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_tensors_get_the_weights_of_arrays_while_autograd_records(count: int, dependent: bool) -> None:
    gram, rhs, valid, noise = (
        torch.from_numpy(np.moveaxis(part, -1, 0)).contiguous()
        for part in last(*systems(4, count, seed=count + 1, dependent=dependent))
    )
    order = tuple(int(j) for j in np.roll(range(count), 1))
    recorded = solve_gram(gram, rhs, valid, order, noise, 0.05, 1e-3)
    with torch.no_grad():
        plain = solve_gram(gram, rhs, valid, order, noise, 0.05, 1e-3)
    torch.testing.assert_close(recorded * rhs, plain * rhs, rtol=1e-9, atol=1e-12)
    assert torch.equal(recorded == 0, plain == 0)


@given(seed=st.integers(0, 10_000), count=st.integers(2, 30), sigma=st.sampled_from([0.0, 0.05, 0.5]))
@settings(max_examples=40)
def test_factorisations_drop_the_columns_that_elimination_drops(seed: int, count: int, sigma: float) -> None:
    gram, rhs, valid, noise = last(*systems(3, count, seed, dependent=seed % 2 == 0))
    order, before = list(range(count)), least_squares.WRITTEN_OUT
    found = []
    try:
        for most in (0, 1000):  # by factorisations, by elimination
            least_squares.WRITTEN_OUT = most
            found.append(solve_small(gram, rhs, valid, noise, order, sigma, 1e-3))
    finally:
        least_squares.WRITTEN_OUT = before
    np.testing.assert_array_equal(found[0] == 0, found[1] == 0)
    size = np.sqrt(np.moveaxis(np.diagonal(gram), -1, 0))
    np.testing.assert_allclose(found[0] * size, found[1] * size, rtol=1e-6, atol=1e-9)


@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0))
@settings(max_examples=30)
def test_a_guess_of_the_dropped_columns_changes_nothing(seed: int, share: float) -> None:
    count = WRITTEN_OUT + 8
    gram, rhs, valid, noise = last(*systems(3, count, seed, dependent=True))
    guess = np.random.default_rng(seed).random(rhs.shape) < share
    wanted = solve_small(gram, rhs, valid, noise, range(count), 0.05, 1e-3)
    found = solve_small(gram, rhs, valid, noise, range(count), 0.05, 1e-3, guess=guess)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("count", COUNTS)
def test_a_row_that_is_not_finite_takes_a_plain_step_and_changes_no_other(count: int, bad: float) -> None:
    gram, rhs, valid, noise = last(*systems(3, count, seed=3))
    wanted = solve_small(gram, rhs, valid, noise, range(count))
    gram[count // 2, :, 1] = gram[:, count // 2, 1] = bad
    found = solve_small(gram, rhs, valid, noise, range(count))
    assert (found[:, 1] == 0).all()
    np.testing.assert_array_equal(found[:, [0, 2]], wanted[:, [0, 2]])


@pytest.mark.parametrize("scale", [1e-140, 1e140])
@pytest.mark.parametrize("count", COUNTS)
def test_the_scale_of_the_columns_does_not_matter(count: int, scale: float) -> None:
    columns, target = systems(2, count, seed=5)
    wanted = solve_small(*last(columns, target), range(count), 0.05, 1e-3)
    found = solve_small(*last(scale * columns, target), range(count), 0.05, 1e-3)
    size = np.linalg.norm(columns, axis=1).T
    np.testing.assert_allclose(scale * found * size, wanted * size, rtol=1e-9, atol=1e-12)
