"""BiCGSTAB: against SciPy's, its own promises row by row; and affine maps solved as linear systems."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fixedpoint as fp
from fixedpoint import BiCGSTAB
from fixedpoint.solvers.linear import LinearSolver, SolutionTolerance
from fixedpoint.testing import check_solver
from fixedpoint.testing.problems import affine_contraction


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


@pytest.mark.parametrize("seed", range(4))
def test_iterates_are_scipys(seed: int) -> None:
    matrix, b = systems(1, 30, seed, spread=0.4)
    iterates: list[np.ndarray] = []
    scipy.sparse.linalg.bicgstab(
        matrix[0].numpy(), b[0].numpy(), rtol=1e-10, callback=lambda x: iterates.append(x.copy())
    )
    norms = [float(torch.linalg.vector_norm(b[0] - matrix[0] @ torch.from_numpy(x))) for x in iterates]
    for k in range(1, 8):
        ours = BiCGSTAB().solve(Product(matrix), b, rtol=0.0, max_products=2 * k)
        best = int(np.argmin(norms[:k]))
        assert ours.products == 2 * k
        if ours.residual[0] * b[0].norm() == pytest.approx(norms[best], rel=1e-6):  # else: half a step was better
            assert np.allclose(ours.x[0].numpy(), iterates[best], rtol=1e-6, atol=1e-9)
        assert float(ours.residual[0] * b[0].norm()) <= norms[best] * (1 + 1e-6)
        true = (b - Product(matrix)(ours.x, np.ones(1, dtype=bool))).norm() / b.norm()
        assert float(true) == pytest.approx(float(ours.residual), rel=1e-6)


def test_the_best_point_is_returned_though_the_residual_is_not_monotone() -> None:
    matrix, b = systems(6, 20, seed=9, spread=0.95)
    reached = [BiCGSTAB().solve(Product(matrix), b, rtol=0.0, max_products=2 * k).residual for k in range(1, 12)]
    assert bool((torch.stack(reached).diff(dim=0) <= 0).all())
    iterates: list[np.ndarray] = []
    scipy.sparse.linalg.bicgstab(
        matrix[0].numpy(), b[0].numpy(), rtol=1e-12, callback=lambda x: iterates.append(x.copy()), maxiter=11
    )
    norms = [float(torch.linalg.vector_norm(b[0] - matrix[0] @ torch.from_numpy(x))) for x in iterates]
    assert any(later > earlier for earlier, later in itertools.pairwise(norms))


@settings(max_examples=40)
@given(size=st.integers(1, 12), rows=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_well_conditioned_systems_are_solved(size: int, rows: int, seed: int) -> None:
    matrix, b = systems(rows, size, seed, spread=0.3)
    solved = BiCGSTAB().solve(Product(matrix), b, rtol=1e-9, max_products=60 + 10 * size)
    assert solved.converged.all()
    assert torch.allclose(solved.x, torch.linalg.solve(matrix, b), rtol=1e-6, atol=1e-7)


def test_a_row_is_solved_as_if_it_were_alone() -> None:
    matrix, b = systems(4, 20, seed=5)
    matrix[2] = torch.eye(20, dtype=torch.float64)  # done after one product
    b[3] = 0
    tolerances = torch.tensor([1e-10, 1e-3, 1e-8, 1e-6], dtype=torch.float64)
    product = Product(matrix)
    whole = BiCGSTAB().solve(product, b, tolerances, max_products=300)
    assert whole.converged.all()
    assert (whole.x[3] == 0).all()
    assert product.rows[2:].tolist() == [1, 0]
    for row in range(4):
        alone = Product(matrix[row : row + 1])
        part = BiCGSTAB().solve(alone, b[row : row + 1], tolerances[row : row + 1], max_products=300)
        assert torch.equal(part.x[0], whole.x[row])
        assert alone.rows[0] == product.rows[row]


def test_a_singular_system_and_one_that_breaks_down_end_and_say_so() -> None:
    singular = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)).unsqueeze(0)
    solved = BiCGSTAB().solve(Product(singular), torch.ones(1, 3, dtype=torch.float64), rtol=1e-10)
    assert not solved.converged.any()
    assert solved.x.isfinite().all()
    skew = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64)  # (r^, A r) vanishes at once
    solved = BiCGSTAB().solve(Product(skew), torch.ones(1, 2, dtype=torch.float64), rtol=1e-10)
    assert solved.x.isfinite().all()
    assert solved.products < 20


def test_a_right_hand_side_that_is_not_finite_stays_in_its_row() -> None:
    matrix, b = systems(2, 6, seed=1, spread=0.3)
    b[1, 0] = torch.nan
    solved = BiCGSTAB().solve(Product(matrix), b, rtol=1e-8)
    assert solved.converged.tolist() == [True, False]


@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1e6, 1e200])
def test_scale_does_not_matter(scale: float) -> None:
    matrix, b = systems(2, 10, seed=3)
    plain, scaled = (BiCGSTAB().solve(Product(matrix), b * s, rtol=1e-8) for s in (1.0, scale))
    assert plain.products == scaled.products
    assert torch.allclose(scaled.x / scale, plain.x, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_dtypes_get_near_their_floor(dtype: torch.dtype) -> None:
    matrix, b = systems(2, 10, seed=4, spread=0.3)
    narrow = matrix.to(dtype)

    def product(v: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        return (narrow.float() * v.float().unsqueeze(1)).sum(-1).to(dtype)

    solved = BiCGSTAB().solve(product, b.to(dtype), rtol=float(torch.finfo(dtype).eps), max_products=60)
    assert solved.x.dtype == dtype
    exact = torch.linalg.solve(narrow.double(), b.to(dtype).double())
    error = (solved.x.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert bool((error <= 60 * torch.finfo(dtype).eps).all())


@pytest.mark.parametrize("method", ["gmres", "bicgstab"])
def test_an_affine_map_is_one_linear_system(method: str) -> None:
    problem = affine_contraction((3.0, 0.9, -2.0, 0.3, -0.5, 0.1), seed=1)  # no contraction
    solution = fp.solve(problem, solver={"name": "krylov", "method": method}, rtol=1e-10)
    assert solution.converged.all()
    assert torch.allclose(solution.z, problem.solution, rtol=1e-8)
    assert solution.evaluations.max() <= 3  # at the start and after the step, where its own error is verified
    assert solution.counts.products.min() >= 6
    assert solution.solver == fp.Krylov(method=method)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["bicgstab", pytest.param("gmres", marks=pytest.mark.slow)])
def test_the_conformance_suite(method: str) -> None:
    check_solver({"name": "krylov", "method": method}).raise_for_failures()


def test_it_cannot_be_unrolled_and_says_so() -> None:
    b = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(TypeError, match="Krylov cannot be unrolled"):
        fp.solve(lambda z: 0.5 * z + b, torch.zeros(2, 2), solver="krylov", gradient="unrolled")


def test_rows_that_the_host_names_are_solved_and_no_others() -> None:
    matrix, b = systems(3, 9, seed=5, spread=0.4)
    rows, product = np.array([True, False, True]), Product(matrix)
    some = BiCGSTAB().solve(product, b, rtol=1e-10, max_products=60, rows=rows)
    every = BiCGSTAB().solve(Product(matrix), b, rtol=1e-10, max_products=60)
    assert some.converged.tolist() == rows.tolist()
    assert product.rows[1] == 0
    assert torch.equal(some.x[rows], every.x[rows])
    assert bool((some.x[1] == 0).all())
    assert float(some.residual[1]) == 1.0


@pytest.mark.parametrize("solver", [fp.GMRES(), fp.GMRES(memory=10), fp.BiCGSTAB()], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_tolerance_of_the_solution_ends_it_as_soon_as_it_holds(solver: LinearSolver, seed: int) -> None:
    """Solutions far longer than the right-hand side, as those of adjoint equations near the edge of contraction are."""
    generator = torch.Generator().manual_seed(seed)
    matrix, b = systems(6, 14, seed=seed, spread=0.3)
    matrix = matrix - 0.6 * torch.eye(14, dtype=torch.float64) * torch.linspace(0, 1, 6)[:, None, None]
    point = 3 * torch.randn(6, 14, generator=generator, dtype=torch.float64)
    product = Product(matrix)
    growing = SolutionTolerance(1e-3, point)

    def within(x: torch.Tensor) -> torch.Tensor:
        residual = (b - product(x, np.ones(6, dtype=bool))).norm(dim=1)
        return residual <= torch.maximum(1e-9 * b.norm(dim=1), 1e-3 * (point + x).norm(dim=1)) * (1 + 1e-6)

    solved = solver.solve(product, b, rtol=1e-9, max_products=200, solution_tolerance=growing)
    assert bool(solved.converged.all())
    assert bool(within(solved.x).all())
    for row in range(6):
        system = Product(matrix[row : row + 1])
        alone = solver.solve(
            system,
            b[row : row + 1],
            1e-9,
            max_products=200,
            solution_tolerance=SolutionTolerance(1e-3, point[row : row + 1]),
        )
        assert torch.equal(alone.x[0], solved.x[row])
        every = 2 if isinstance(solver, fp.BiCGSTAB) else 1
        sooner = solver.solve(system, b[row : row + 1], 0.0, max_products=max(alone.products - every, 0))
        x = torch.zeros_like(b)
        x[row] = sooner.x[0]
        assert not bool(within(x)[row]), "an iteration less would have done"
