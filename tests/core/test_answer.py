"""What is returned is what was judged: a row that has converged ends at the point that met the tolerance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fixedpoint import solve

RTOL = 0.005


def growing(rates: torch.Tensor):
    """Logistic growth ``z + a z (1 - z)``: from little its error grows at first, and falls as ``z`` comes near 1."""
    return lambda z: z + rates * z * (1 - z)


def met_by_hand(rate: float, z: float) -> tuple[int, float]:
    """The round in which plain iteration from ``z`` meets the tolerance, and the point it is at."""
    for rounds in range(1, 400):
        value = z + rate * z * (1 - z)
        if abs(value - z) <= RTOL * abs(value):
            return rounds, z
        z = value
    raise AssertionError("the tolerance is not met")


@pytest.mark.parametrize("rows", [[(0.1, 0.01)], [(0.1, 0.01), (0.1, 0.01)], [(0.1, 0.01), (0.3, 0.003), (0.2, 0.01)]])
def test_a_row_ends_where_it_converged_though_an_earlier_point_had_a_smaller_error(
    rows: list[tuple[float, float]],
) -> None:
    """Alone, all at once, and while others go on."""
    rates, start = (torch.tensor(each, dtype=torch.float64).unsqueeze(1) for each in zip(*rows, strict=True))
    solution = solve(growing(rates), start, solver="picard", rtol=RTOL)
    assert solution.converged.all()
    assert (solution.relative_error <= RTOL).all()
    for row, (rate, first) in enumerate(rows):
        rounds, z = met_by_hand(rate, first)
        assert rate * z * (1 - z) > rate * first * (1 - first)  # a larger error than that of the start
        assert solution.rounds[row] == rounds
        assert float(solution.z[row]) == pytest.approx(z, rel=1e-12)
        assert float(solution.error[row]) == pytest.approx(rate * z * (1 - z), rel=1e-9)
    assert len(set(solution.rounds.tolist())) == len(set(rows))


def test_a_row_cut_short_ends_at_its_best_point() -> None:
    """Where no point met the tolerance it is that of smallest error: the start, from which the error grows."""
    rates = torch.tensor([[0.1], [0.5]], dtype=torch.float64)
    solution = solve(growing(rates), torch.full_like(rates, 0.01), solver="picard", rtol=1e-6, max_rounds=7)
    assert [status.label for status in solution.status] == ["max_rounds"] * 2
    assert bool((solution.z == 0.01).all())


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_is_a_fixed_point_where_f_is_zero_there(solver: str, dtype: torch.dtype) -> None:
    """``atol`` is 0, so all states before it are as far from it as they are large."""
    solution = solve(lambda z: z / 4, torch.ones(2, 3, dtype=dtype), solver=solver)
    assert solution.converged.all()
    assert not solution.z.any()


def test_an_error_that_is_no_number_is_no_small_one() -> None:
    solution = solve(lambda z: torch.log(z - 3), torch.ones(2, 2))
    assert not solution.converged.any()
    assert (solution.relative_error == np.inf).all()
    assert "relative error inf" in repr(solution)
