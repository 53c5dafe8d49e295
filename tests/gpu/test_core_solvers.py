"""Core solvers on a device: the answers and counts of the CPU, and one wait for the device a round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from devices import Device, Watched, moved, waits_between

import fixedpoint as fp
from fixedpoint.registry import registry
from fixedpoint.testing.problems import RowProblem, affine_contraction, tanh_cell

pytestmark = pytest.mark.gpu

PROBLEMS: dict[str, RowProblem] = {
    "affine": affine_contraction((0.6, 0.4, -0.5, 0.3), rows=3, seed=12),
    "tanh cell": tanh_cell(size=12, rows=5, gain=0.6, seed=11),
}
NAMES = [
    name
    for name, component in registry.components("solver").items()
    if component.factory.startswith("fixedpoint.") and "chain" not in registry.create("solver", name).needs
]
OPTIONS: list[Any] = [
    fp.Anderson(memory=12, adaptive="distance", surprise=1.5, ridge=1e-10, filter=0.05),
    fp.Anderson(adaptive="gain", relaxation=0.9),
    {"name": "broyden", "update": "bad"},
    {"name": "krylov", "method": "bicgstab"},
    {"name": "krylov", "memory": 2},
    {"name": "newton-krylov", "jacobian": "difference"},
    {"name": "polyalgorithm", "first": {"name": "picard", "relaxation": 0.1}, "then": "anderson", "share": 0.02},
]
SOLVERS = [*NAMES, *OPTIONS]


def suits(solver: Any, problem: str) -> bool:
    """``krylov`` takes every map for affine."""
    return problem == "affine" or (solver["name"] if isinstance(solver, dict) else solver) != "krylov"


CASES = [(solver, problem) for solver in SOLVERS for problem in PROBLEMS if suits(solver, problem)]


def test_all_of_them_are_here() -> None:
    assert {"anderson", "auto", "broyden", "newton-krylov", "krylov", "squarem", "polyalgorithm"} <= set(NAMES)


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] if case[1] == "affine" and suits(case[0], "tanh cell") else [])
        for case in CASES
    ],
    ids=str,
)
def test_agrees_with_the_cpu(device: Device, solver: Any, name: str) -> None:
    here = fp.solve(PROBLEMS[name], solver=solver, rtol=1e-12)
    there = fp.solve(moved(PROBLEMS[name], device), solver=solver, rtol=1e-12)
    assert there.state.device == torch.device(device.device)
    assert there.converged.all(), there.message
    assert np.abs(there.rounds - here.rounds).max() <= 1
    assert np.abs(there.evaluations - here.evaluations).max() <= 1
    torch.testing.assert_close(there.z.cpu(), here.z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("solver", "name"), [case for case in CASES if case[1] == "tanh cell" or not suits(case[0], "tanh cell")], ids=str
)
def test_the_host_waits_once_a_round(device: Device, solver: Any, name: str) -> None:
    """Newton's line search asks of its point before the loop does, and methods with whole Jacobians which are stale.

    Rows are handed over once a solve.
    """
    seen: list[int] = []
    solution = fp.solve(Watched(moved(PROBLEMS[name], device), device, seen), solver=solver, rtol=1e-8)
    assert solution.converged.all(), solution.message
    assert len(seen) >= 4
    between = sorted(waits_between(seen))[: -1 if "polyalgorithm" in str(solver) else None]
    assert max(between) <= (2 if any(name in str(solver) for name in ("newton", "trust", "roots")) else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_narrow_dtypes(device: Device, solver: str, dtype: torch.dtype) -> None:
    problem = PROBLEMS["affine"].astype(dtype)
    rtol = 16 * torch.finfo(dtype).eps
    solution = fp.solve(moved(problem, device), solver=solver, rtol=rtol)
    assert solution.converged.all(), solution.message
    assert solution.z.dtype == dtype
    difference = (solution.z.cpu().double() - PROBLEMS["affine"].solution).norm(dim=1)
    assert (difference / PROBLEMS["affine"].solution.norm(dim=1)).amax() <= 10 * rtol


def test_what_the_user_has_is_on_one_device(device: Device) -> None:
    with pytest.raises(TypeError, match="one device"):
        fp.solve(lambda z: z, (torch.ones(2, 3), torch.ones(2, 3).to(device.device)))
    with pytest.raises(ValueError, match="like z0"):
        fp.solve(lambda z: z.cpu(), torch.ones(2, 3).to(device.device))
