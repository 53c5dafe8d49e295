"""Relative to a state that has run away everything is small: it is not called converged; and what grows to its fixed
point is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fixedpoint import Status, Termination, solve
from fixedpoint.core.row_history import Measured
from fixedpoint.core.runaway import Runaway

SOLVERS = ("picard", "anderson", "anderson-type1", "broyden", "aitken", "squarem", "newton-krylov", "auto")
BACK = ("anderson", "anderson-type1", "broyden", "newton-krylov", "auto")
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


@pytest.mark.parametrize(
    ("dtype", "solver"),
    [
        *((torch.float64, solver) for solver in BACK),
        *(
            pytest.param(torch.float32, solver, marks=[pytest.mark.slow] if solver in BACK[1:4] else [])
            for solver in BACK
        ),
    ],
)
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


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        pytest.param(name, solver, marks=[pytest.mark.slow] if (name, solver) == ("a slower one", "picard") else [])
        for name in GROWS
        for solver in ("picard", "squarem")
    ],
)
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


def doubted(*seen: tuple[float, float]) -> bool:
    """Whether the last of some (error, scale) is doubted, of a row in float64."""
    points = [_at(*each) for each in seen]
    runaway = Runaway.begin(points[0], None, 2.0**-52)
    for point in points[1:]:
        runaway.update(point, 2.0**-52)
    return bool(runaway.doubts(False))


def _at(error: float, scale: float) -> Measured:
    return Measured(error, scale, finite=True, settled=None)


RUNS_AWAY = {
    "as a step a round": [(1.0, s) for s in (1.0, 2.0, 4.0, 1e3, 1e6)],
    "by a power law": [(s**-2.0, s) for s in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)],
    "far out, and back to where the relative error is what it was": [
        *((0.05, 1.5), (0.05, 1.8), (1.8, 1800.0), (87.0, 44.0), (1.9, 1900.0), (0.57, 523.0), (0.22, 178.0))
    ],
    "with one clean halving after many that came with growth": [
        *((1.0, 1.0), (0.4, 4.0), (0.16, 16.0), (0.07, 64.0), (0.03, 256.0), (0.01, 300.0))
    ],
    "by steps too far, and back to the same error": [
        (1.0, 1.0),
        (1.0, 3.0),
        (1e3, 1e3),
        (1.0, 5.0),
        (1e3, 1e3),
        (1.0, 9.0),
    ],
    "from the start once more": [(1.0, 1.0), (0.4, 4.0), (0.16, 16.0), (1e4, 5e3), (8e3, 4e3), (0.4, 0.5), (0.1, 2.0)],
}
CONVERGES = {
    "at a fixed scale": [(1.0, 1.0), (0.4, 1.1), (0.1, 1.1)],
    "from zero": [
        (1.0, 1.0),
        (0.5, 500.0),
        (0.25, 750.0),
        (0.125, 875.0),
        (0.06, 940.0),
        (0.03, 970.0),
        (0.015, 985.0),
    ],
    "after a rise, from little": [
        *((1e-7, 1e-6), (3e-7, 3e-6), (1e-6, 1e-5), (3e-6, 3e-5), (1e-5, 1e-4), (3e-5, 3e-4), (1e-4, 1e-3)),
        *(
            (3e-4, 3e-3),
            (1e-3, 1e-2),
            (3e-3, 3e-2),
            (0.01, 0.1),
            (0.02, 0.4),
            (0.009, 0.9),
            (0.004, 0.97),
            (0.001, 1.0),
        ),
    ],
    "after a step too far": [(1.0, 1.0), (50.0, 60.0), (0.4, 1.2), (0.1, 1.2)],
    "down to a smaller state": [(1.0, 100.0), (0.3, 30.0), (0.1, 3.0), (0.03, 1.1), (0.01, 1.0)],
}


@pytest.mark.parametrize("name", RUNS_AWAY)
def test_a_course_that_runs_away_is_doubted(name: str) -> None:
    assert doubted(*RUNS_AWAY[name])


@pytest.mark.parametrize("name", CONVERGES)
def test_a_course_that_converges_is_not(name: str) -> None:
    assert not doubted(*CONVERGES[name])
