"""Counts on the problems of FixedPointTestProblems.jl, against those that other libraries were published to take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from published_maps import PROBLEMS, Published, counted

import fixedpoint
from fixedpoint_classic.h_equation import HEquation


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


# SpeedMapping.jl's "aa" with 30 lags and no relaxation.
@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("exchange", 7),
        ("power", 14),
        ("diagonal", 77),
        slow("field-seidel", 286),
        slow("field-sor", 376),
        slow("field-jacobi", 768),
        slow("bratu", 865),
    ],
)
def test_anderson_takes_as_many_maps_as_another_implementation(name: str, maps: int) -> None:
    assert counted(PROBLEMS[name](), fixedpoint.Anderson(memory=30)) == maps


@pytest.mark.parametrize(
    ("name", "solver", "most"),
    [
        ("poisson", {"name": "anderson", "memory": 3}, 23),  # FixedPointAcceleration, Anderson
        ("poisson", {"name": "squarem", "scheme": "squarem"}, 81),
        ("poisson", "squarem", 67),
        ("diagonal", "squarem", 108),  # what follows: SpeedMapping.jl, acx and aa
        ("correlation", "squarem", 60),
        ("power", "squarem", 18),
        ("field-sor", "squarem", 420),
        slow("field-jacobi", "squarem", 893),
        slow("bratu", "squarem", 2223),
        ("als", "squarem", 88),
        ("als", "auto", 88),
        ("poisson", "auto", 52),
        ("diagonal", "auto", 72),
        ("bratu", "auto", 256),
    ],
)
def test_no_more_maps_than_published(name: str, solver: Any, most: int) -> None:
    count = counted(PROBLEMS[name](), solver)
    assert count is not None
    assert count <= most


@pytest.mark.parametrize("size", [100, 500])
def test_cyclic_extrapolation_of_the_singular_h_equation(size: int) -> None:
    problem = HEquation(size=size, c=(1.0,)).build(0)

    def f(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.asarray(problem(problem.start.new_tensor(z).unsqueeze(0))[0])

    count = counted(Published(f, problem.start[0].numpy(), 0, 0), "squarem")
    assert count is not None
    assert count <= 75


def test_sweeps_of_the_electric_field_are_those_of_their_definition() -> None:
    rng = np.random.default_rng(0)
    z = np.zeros((100, 100))
    z[1:-1, 1:-1] = rng.standard_normal((98, 98))
    source = PROBLEMS["field-seidel"]().start.reshape(100, 100, order="F")
    for name, omega in (("field-seidel", 1.0), ("field-sor", 1.94)):
        swept = z.copy()
        for column in range(1, 99):
            for row in range(1, 99):
                around = swept[row - 1, column] + swept[row + 1, column]
                around += swept[row, column - 1] + swept[row, column + 1]
                new = 0.25 * (around + source[row, column] / 99**2)
                swept[row, column] += omega * (new - swept[row, column])
        found = PROBLEMS[name]().f(z.ravel(order="F"))
        np.testing.assert_allclose(found, swept.ravel(order="F"), rtol=0, atol=1e-10)
