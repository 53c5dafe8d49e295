"""GMRES: against SciPy's, and its own promises row by row."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixedpoint import GMRES


def systems(rows: int, size: int, seed: int, spread: float = 0.8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, size, size, generator=generator, dtype=torch.float64)
    matrix = torch.eye(size, dtype=torch.float64) + spread * noise / size**0.5
    return matrix, torch.randn(rows, size, generator=generator, dtype=torch.float64)


class Product:
    """``A v`` of a batch, its products counted row by row; sums whose rounding does not depend on the batch."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix
        self.rows = np.zeros(len(matrix), dtype=int)

    def __call__(self, v: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        self.rows += rows
        return (self.matrix * v.unsqueeze(1)).sum(-1)


@pytest.mark.parametrize("memory", [30, 7])
@pytest.mark.parametrize("seed", range(4))
def test_every_residual_is_scipys(memory: int, seed: int) -> None:
    matrix, b = systems(1, 30, seed)
    history: list[float] = []
    scipy.sparse.linalg.gmres(
        matrix[0].numpy(),
        b[0].numpy(),
        rtol=1e-10,
        restart=memory,
        maxiter=3,
        callback=history.append,
        callback_type="pr_norm",
    )
    for k in range(1, min(memory, 15) + 1):
        ours = GMRES(memory=memory).solve(Product(matrix), b, rtol=0.0, max_products=k)
        assert ours.products == k
        assert float(ours.residual) == pytest.approx(history[k - 1], rel=1e-6)
        true = (b - Product(matrix)(ours.x, np.ones(1, dtype=bool))).norm() / b.norm()
        assert float(true) == pytest.approx(float(ours.residual), rel=1e-6, abs=1e-14)


@settings(max_examples=30)
@given(size=st.integers(1, 12), rows=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_as_many_products_as_unknowns_are_enough(size: int, rows: int, seed: int) -> None:
    matrix, b = systems(rows, size, seed, spread=0.4)
    solved = GMRES().solve(Product(matrix), b, rtol=1e-10)
    assert solved.converged.all()
    assert solved.products <= size + 1
    assert torch.allclose(solved.x, torch.linalg.solve(matrix, b), rtol=1e-6, atol=1e-7)


def test_a_row_is_solved_as_if_it_were_alone() -> None:
    matrix, b = systems(4, 20, seed=5)
    matrix[2] = torch.eye(20, dtype=torch.float64)  # done after one product
    tolerances = torch.tensor([1e-10, 1e-3, 1e-8, 1e-6], dtype=torch.float64)
    product = Product(matrix)
    whole = GMRES(memory=8).solve(product, b, tolerances, max_products=200)
    assert whole.converged.all()
    for row in range(4):
        alone = Product(matrix[row : row + 1])
        part = GMRES(memory=8).solve(alone, b[row : row + 1], tolerances[row : row + 1], max_products=200)
        assert torch.equal(part.x[0], whole.x[row])
        assert alone.rows[0] == product.rows[row]
    assert product.rows[2] == 1


def test_zero_on_the_right_costs_nothing() -> None:
    matrix, b = systems(2, 6, seed=1)
    b[1] = 0
    product = Product(matrix)
    solved = GMRES().solve(product, b, rtol=1e-8)
    assert solved.converged.all()
    assert (solved.x[1] == 0).all()
    assert product.rows[1] == 0
    none = GMRES().solve(product, torch.zeros(2, 6, dtype=torch.float64), rtol=1e-8)
    assert none.products == 0


def test_a_singular_system_ends_and_says_so() -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)).unsqueeze(0)
    solved = GMRES().solve(Product(matrix), torch.ones(1, 3, dtype=torch.float64), rtol=1e-10)
    assert not solved.converged.any()
    assert float(solved.residual) == pytest.approx(3**-0.5, rel=1e-6)
    assert solved.x.isfinite().all()


@pytest.mark.parametrize("scale", [1e-150, 1e-6, 1e6, 1e150])
def test_scale_does_not_matter(scale: float) -> None:
    matrix, b = systems(2, 10, seed=3)
    plain, scaled = (GMRES(memory=4).solve(Product(matrix), b * s, rtol=1e-8) for s in (1.0, scale))
    assert plain.products == scaled.products
    assert torch.allclose(scaled.x / scale, plain.x, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_get_to_their_floor(dtype: torch.dtype) -> None:
    matrix, b = systems(2, 10, seed=4, spread=0.3)
    narrow = matrix.to(dtype)

    def product(v: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        return (narrow.float() * v.float().unsqueeze(1)).sum(-1).to(dtype)

    solved = GMRES().solve(product, b.to(dtype), rtol=0.0, max_products=30)
    assert solved.x.dtype == dtype
    exact = torch.linalg.solve(narrow.double(), b.to(dtype).double())
    error = (solved.x.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert bool((error <= 30 * torch.finfo(dtype).eps).all())


def test_a_row_that_stagnates_does_not_keep_the_others_from_going_on() -> None:
    matrix, b = systems(2, 12, seed=8)
    # A shift of the first unit vector: no progress until as many products as unknowns.
    matrix[0] = torch.roll(torch.eye(12, dtype=torch.float64), 1, dims=0)
    b[0] = torch.eye(12, dtype=torch.float64)[0]
    product = Product(matrix)
    whole = GMRES(memory=5).solve(product, b, rtol=1e-10, max_products=300)
    alone = Product(matrix[1:])
    part = GMRES(memory=5).solve(alone, b[1:], rtol=1e-10, max_products=300)
    assert whole.converged.tolist() == [False, True]
    assert torch.equal(whole.x[1], part.x[0])
    assert product.rows[1] == alone.rows[0]
    assert product.rows[0] <= 10  # it gives up after a cycle without progress


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1.7e308])
@pytest.mark.parametrize("after", [0, 2])
def test_a_row_that_overflows_says_nothing_and_leaves_the_others_alone(bad: float, after: int) -> None:
    matrix, b = systems(3, 6, seed=4, spread=0.4)
    exact, made = Product(matrix), 0

    def product(v: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        nonlocal made
        made += 1
        value = exact(v, rows)
        return value.index_fill(0, torch.tensor([1]), bad) if made > after else value

    found = GMRES(memory=4).solve(product, b, rtol=1e-10, max_products=60)
    whole = GMRES(memory=4).solve(Product(matrix), b, rtol=1e-10, max_products=60)
    assert found.converged.tolist() == [True, False, True]
    assert torch.equal(found.x[[0, 2]], whole.x[[0, 2]])


def test_rows_that_the_host_names_are_solved_and_no_others() -> None:
    matrix, b = systems(3, 9, seed=5, spread=0.4)
    rows, product = np.array([True, False, True]), Product(matrix)
    some = GMRES(memory=4).solve(product, b, rtol=1e-10, max_products=60, rows=rows)
    every = GMRES(memory=4).solve(Product(matrix), b, rtol=1e-10, max_products=60)
    assert some.converged.tolist() == rows.tolist()
    assert product.rows[1] == 0
    assert torch.equal(some.x[rows], every.x[rows])
    assert bool((some.x[1] == 0).all())
    assert float(some.residual[1]) == 1.0


@pytest.mark.parametrize("late", [(0, 1, 2), (3, 4, 5), (0, 2, 5), (4,), (0, 1, 2, 3, 4)])
def test_rows_go_on_as_if_alone_once_others_are_done(late: tuple[int, ...]) -> None:
    """Three of six rows go on among themselves, one does, or five do; the others are done after a product."""
    matrix, b = systems(6, 15, seed=9, spread=0.5)
    for row in set(range(6)) - set(late):
        matrix[row] = 2 * torch.eye(15, dtype=torch.float64)
    product = Product(matrix)
    whole = GMRES(memory=20).solve(product, b, rtol=1e-9, max_products=60)
    assert whole.converged.all()
    for row in range(6):
        alone = Product(matrix[row : row + 1])
        part = GMRES(memory=20).solve(alone, b[row : row + 1], rtol=1e-9, max_products=60)
        assert torch.equal(part.x[0], whole.x[row])
        assert alone.rows[0] == product.rows[row]
        assert (alone.rows[0] == 1) == (row not in late)
