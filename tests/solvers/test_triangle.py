"""The rotated triangle of GMRES: residual, length and coefficients of the least-squares problem, column by column."""

from __future__ import annotations

import numpy as np
import pytest

from fixedpoint.solvers.triangle import Triangle


def hessenberg(rows: int, size: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(size + 1, size, rows))
    for j in range(size):
        drawn[j + 2 :, j] = 0.0
    return drawn


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_it_solves_the_least_squares_problem(rows: int, seed: int) -> None:
    matrix, rhs = hessenberg(rows, 6, seed), np.random.default_rng(seed + 9).random(rows) + 1
    point = np.random.default_rng(seed + 5).normal(size=(6, rows))  # along the basis; the rest of it is 2 long
    triangle = Triangle(rhs.copy())
    for j in range(6):
        triangle.append(matrix[: j + 1, j].copy(), matrix[j + 1, j].copy(), np.zeros(rows))
        length = triangle.length((point**2).sum(axis=0) + 4.0, list(point[: j + 1]))
        found = triangle.coefficients()
        for row in range(rows):
            e = np.zeros(j + 2)
            e[0] = rhs[row]
            y, (square,), *_ = np.linalg.lstsq(matrix[: j + 2, : j + 1, row], e, rcond=None)
            assert np.allclose(found[:, row], y)
            assert triangle.residual[row] == pytest.approx(square**0.5)
            whole = point[:, row].copy()
            whole[: j + 1] += y
            assert length[row] == pytest.approx(np.sqrt((whole**2).sum() + 4.0))
    part = triangle.coefficients(np.array([rows - 1]))
    assert np.array_equal(part[:, 0], triangle.coefficients()[:, -1])


def test_rows_that_end_or_are_dropped_change_no_bit_of_the_others() -> None:
    matrix, rhs = hessenberg(4, 6, seed=2), np.arange(1.0, 5.0)
    whole, part = Triangle(rhs.copy()), Triangle(rhs.copy())
    for j in range(6):
        for each, rows in ((whole, np.arange(4)), (part, np.arange(4) if j < 3 else np.array([1, 3]))):
            along, last = matrix[: j + 1, j][:, rows].copy(), matrix[j + 1, j][rows].copy()
            each.append(along, last, np.zeros(len(rows)))
            each.length(np.zeros(len(rows)), [])
        if j == 2:
            part.end(np.array([False, True, False, True]))
            assert part.residual[0] == 0.0
            part.keep(np.array([1, 3]))
    assert np.array_equal(part.coefficients(), whole.coefficients()[:, [1, 3]])
    assert np.array_equal(part.residual, whole.residual[[1, 3]])


def test_a_column_of_rounding_counts_as_none() -> None:
    triangle = Triangle(np.ones(1))
    triangle.append(np.array([[2.0]]), np.array([1.0]), np.array([1e-15]))
    before = triangle.residual.copy()
    # Twice the first column once more: after the rotation nothing but rounding is left of it.
    triangle.append(np.array([[2.0], [1.0]]), np.array([1e-17]), np.array([1e-15]))
    assert triangle.residual == pytest.approx(before)
    assert triangle.coefficients()[1] == 0.0
