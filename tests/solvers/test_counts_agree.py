"""The same problem in other units, another dtype or other pieces takes the same rounds, one more or less."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fixedpoint as fp
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.testing.problems import TanhCell, affine_contraction, tanh_cell
from fixedpoint.testing.wrappers import Scaled

SOLVERS: list[Any] = [
    "auto",
    "picard",
    "anderson",
    fp.Anderson(memory=12, filter=0.1, ridge=1e-3),
    "anderson-type1",
    "broyden",
    {"name": "broyden", "update": "bad"},
    "newton-krylov",
    "aitken",
    "squarem",
    "damped",
    "restarted",
    "polyalgorithm",
]


def cell() -> TanhCell:
    return tanh_cell(size=12, rows=4, gain=1.2, seed=11)


def rounds(problem: Any, solver: Any, rtol: float) -> np.ndarray:
    solution = fp.solve(problem, solver=solver, rtol=rtol)
    assert solution.converged.all(), solution
    return solution.rounds


def agree(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.abs(one - other) <= 1).all())


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_in_other_units(solver: Any, scale: float, dtype: torch.dtype) -> None:
    problem = cell().astype(dtype)
    assert agree(rounds(Scaled(problem, scale), solver, 1e-4), rounds(problem, solver, 1e-4))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_in_single_precision(solver: Any) -> None:
    assert agree(rounds(cell().astype(torch.float32), solver, 1e-4), rounds(cell(), solver, 1e-4))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_in_bfloat16_to_its_floor(solver: Any) -> None:
    """Near the floor (eps is 8e-3) the last rounds are decided by rounding, of the problem, too."""
    problem = affine_contraction((0.8, 0.5, -0.6, 0.3), rows=4, seed=12)
    narrow, wide = (rounds(each, solver, 3e-2) for each in (problem.astype(torch.bfloat16), problem))
    assert (narrow <= wide + 3).all()


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("sizes", [(12,), (1, 11), (5, 3, 4), (1,) * 12])
def test_in_other_pieces(solver: Any, sizes: tuple[int, ...]) -> None:
    problem = cell()

    def pieces(z: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return problem(torch.cat(z, dim=1)).split(sizes, dim=1)

    split = FunctionProblem(pieces, problem.initial().split(sizes, dim=1), "independent")
    assert agree(
        rounds(split, solver, 1e-8), rounds(FunctionProblem(problem, problem.initial(), "independent"), solver, 1e-8)
    )
