"""Relative to a state that has run away everything is small: it is not called converged; and what grows to its fixed
point is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fixedpoint import Status, Termination, solve

SOLVERS = ("picard", "anderson", "anderson-type1", "broyden", "aitken", "squarem", "newton-krylov", "auto")
AWAY = {
    "z + 1": lambda z: z + 1,
    "z - 3": lambda z: z - 3,
    "sqrt(z^2 + 1)": lambda z: torch.sqrt(z * z + 1),
    "z + 1 / (1 + z^2)": lambda z: z + 1 / (1 + z * z),
    "z + log(2 + |z|)": lambda z: z + torch.log(2 + z.abs()),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_runs_away_has_not_converged(solver: str, dtype: torch.dtype) -> None:
    """All of them at once: two rows each."""
    z0 = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=dtype).repeat(len(AWAY), 1)

    def f(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([each(part) for each, part in zip(AWAY.values(), z.split(2), strict=True)])

    solution = solve(f, z0, solver=solver, max_rounds=150, rtol=1e-4)
    assert not solution.converged.any(), (solution.z[torch.from_numpy(solution.converged)], solution.error)


@pytest.mark.parametrize("solver", ["anderson", "anderson-type1", "broyden", "newton-krylov", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_way_back_from_a_step_too_far_is_no_fall(solver: str, dtype: torch.dtype) -> None:
    """Extrapolation lands on the other side of zero, where the error is as large as the state, and comes back."""
    z0 = torch.tensor([[0.0, 0.0], [0.5, 3.0], [0.9, 0.9]], dtype=dtype)
    for step in (0.05, 178.0):
        for rtol in (8e-3, 3e-5):
            for f in (
                lambda z, step=step: 1.001 * z.abs() + step,
                lambda z, step=step: z + step * torch.log(2 + z.abs()),
                lambda z, step=step: z + step / (1 + z.abs()),
            ):
                solution = solve(f, z0, solver=solver, rtol=rtol, max_rounds=60)
                away = (solution.z.norm(dim=1) > 4 * torch.maximum(z0, f(z0)).norm(dim=1)).numpy()
                assert not (solution.converged & away).any(), (step, rtol, solution.z, solution.error)


def test_plain_rounds_that_run_away_say_so() -> None:
    solution = solve(lambda z: z + 1, torch.zeros(1, 2), solver="picard", rtol=1e-2, max_rounds=300)
    assert not solution.converged.any()
    assert "the state ran away" in solution.message


GROWS = {
    "a slow contraction from zero": (lambda z: 0.99 * z + 1, 0.0, 100.0),
    "a slower one": (lambda z: 0.997 * z + 1, 0.0, 1e3 / 3),
    "a growth model from little": (lambda z: z + 0.1 * z * (1 - z), 1e-6, 1.0),
}


@pytest.mark.parametrize("solver", ["picard", "squarem"])
@pytest.mark.parametrize("name", GROWS)
def test_what_grows_to_its_fixed_point_converges(name: str, solver: str) -> None:
    f, start, right = GROWS[name]
    solution = solve(f, torch.full((1, 1), start, dtype=torch.float64), solver=solver, rtol=1e-7, max_rounds=40_000)
    assert solution.converged.all(), solution.message
    assert float(solution.z) == pytest.approx(right, rel=1e-4)


def test_one_long_step_to_a_far_solution_is_no_runaway() -> None:
    """All that is left there is rounding, of 1e-8 where the solution is 1e8: nothing can be halved any more."""
    solution = solve(lambda z: (1 - 1e-8) * z + 1, torch.zeros(1, 1, dtype=torch.float64), solver="anderson")
    assert solution.converged.all(), solution.message
    assert float(solution.z) == pytest.approx(1e8, rel=1e-3)


def test_an_absolute_tolerance_and_one_relative_to_the_start_are_kept_as_asked() -> None:
    def wide(z: Any) -> Any:
        return torch.sqrt(z * z + 1)

    z0 = torch.zeros(1, 1, dtype=torch.float64)
    assert solve(wide, z0, solver="anderson", rtol=0.0, atol=1e-3).status == (Status.CONVERGED,)
    rule = Termination(rtol=1e-3, relative_to="start")
    assert solve(wide, z0, solver="anderson", termination=rule).status == (Status.CONVERGED,)
