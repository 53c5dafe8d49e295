"""Aitken and SQUAREM: against plainly written recurrences, and where they are known to be exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fixedpoint import Aitken, Squarem, solve
from fixedpoint.core.options import OptionError
from fixedpoint.testing.problems import affine_contraction

Map = Callable[[np.ndarray], np.ndarray]


def points_of(f: Map, start: np.ndarray, solver: object, rounds: int) -> np.ndarray:
    """The points a solver evaluated."""
    seen: list[np.ndarray] = []

    def watched(z: np.ndarray) -> np.ndarray:
        seen.append(z[0].copy())
        return f(z[0])[None]

    solve(watched, start[None], solver=solver, rtol=0.0, max_rounds=rounds, rows="independent")
    return np.array(seen)


def slow(z: np.ndarray) -> np.ndarray:
    """A monotone map that converges slowly, as EM does."""
    return z + 0.1 * np.array([0.3, 0.2, 0.05, 0.02]) * (np.arange(1.0, 5.0) - z - 0.05 * z * z)


def aitken(f: Map, z: np.ndarray, rounds: int) -> np.ndarray:
    points, omega, last = [], 1.0, None
    for _ in range(rounds):
        points.append(z)
        r = f(z) - z
        if last is not None:
            omega = -omega * last @ (r - last) / ((r - last) @ (r - last))
        z, last = z + omega * r, r
    return np.array(points)


def squarem(f: Map, z: np.ndarray, rounds: int) -> np.ndarray:
    points, bound = [], 4.0
    while len(points) < rounds:
        one = f(z)
        two = f(one)
        d1, d2 = one - z, two - 2 * one + z
        wanted = np.linalg.norm(d1) / np.linalg.norm(d2)
        sigma = min(max(wanted, 1.0), bound)
        jumped = z + 2 * sigma * d1 + sigma**2 * d2
        points += [z, one, jumped]
        bound *= 4.0 if wanted >= bound else 1.0
        z = f(jumped)
    return np.array(points[:rounds])


def cyclic(f: Map, z: np.ndarray, rounds: int) -> np.ndarray:
    points, bound, order = [], 4.0, 3
    while len(points) < rounds:
        x = [z]
        for _ in range(order):
            x.append(f(x[-1]))
        d1, d2 = x[1] - x[0], x[2] - 2 * x[1] + x[0]
        if order == 3:
            d3 = x[3] - 3 * x[2] + 3 * x[1] - x[0]
            wanted = abs(d2 @ d3) / (d3 @ d3)
            sigma = min(max(wanted, 1.0), bound)
            z = z + 3 * sigma * d1 + 3 * sigma**2 * d2 + sigma**3 * d3
        else:
            wanted = abs(d1 @ d2) / (d2 @ d2)
            sigma = min(max(wanted, 1.0), bound)
            z = z + 2 * sigma * d1 + sigma**2 * d2
        bound *= 4.0 if wanted >= bound else 1.0
        points += x[:order]
        order = 5 - order
    return np.array(points[:rounds])


@pytest.mark.parametrize(
    ("solver", "reference"),
    [
        (Aitken(shortest=1e-6, longest=1e6), aitken),
        (Squarem(scheme="squarem", growth=1e6), squarem),
        (Squarem(scheme="cyclic", growth=1e6), cyclic),
    ],
    ids=["aitken", "squarem", "cyclic"],
)
def test_every_point_is_that_of_the_recurrence(solver: object, reference: Callable[..., np.ndarray]) -> None:
    start = np.array([0.1, 3.0, -1.0, 0.5])
    rounds = 13
    found, expected = points_of(slow, start, solver, rounds), reference(slow, start, rounds)
    assert np.allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_in_one_unknown_aitken_is_the_secant_method() -> None:
    points = points_of(np.cos, np.array([1.0]), Aitken(shortest=1e-9, longest=1e9), 7)[:, 0]
    g = np.cos(points) - points
    for k in range(1, 5):
        secant = points[k] - g[k] * (points[k] - points[k - 1]) / (g[k] - g[k - 1])
        assert points[k + 1] == pytest.approx(secant, rel=1e-9)


@pytest.mark.parametrize("solver", [Aitken(), Squarem(), Squarem(scheme="squarem")], ids=str)
def test_one_eigenvalue_is_solved_at_once(solver: object) -> None:
    problem = affine_contraction((0.7,) * 4, rows=3, seed=2)
    assert solve(problem, solver=solver, rtol=1e-10).counts.rounds <= 5


@pytest.mark.parametrize("scheme", ["squarem", "cyclic"])
def test_slow_monotone_maps_take_far_fewer_rounds(scheme: str) -> None:
    problem = affine_contraction(np.linspace(0.0, 0.985, 12), rows=4, seed=3)
    plain = solve(problem, solver="picard", rtol=1e-8, max_rounds=10_000)
    quick = solve(problem, solver=Squarem(scheme=scheme), rtol=1e-8, max_rounds=10_000)
    assert quick.converged.all()
    assert quick.counts.rounds * 4 < plain.counts.rounds


def test_an_extrapolation_that_does_harm_is_undone() -> None:
    """Beyond the wall the map throws a point far away; with the safeguard the row comes back and converges."""

    def walled(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z > 1.2, z + 1e3, 0.98 * z + 0.02)

    start = torch.full((2, 1), -5.0, dtype=torch.float64)
    assert solve(walled, start, solver=Squarem(), rtol=1e-9).converged.all()


def test_lengths_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(OptionError, match=r"shortest must not exceed longest, 1.0, got 2.0"):
        Aitken(shortest=2.0, longest=1.0)
