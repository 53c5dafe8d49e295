"""A stall is claimed only where it is one: slow contractions and errors that rise before they fall are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fixedpoint import Status, Termination, solve


@pytest.mark.parametrize(
    ("c", "dtype"),
    [
        (0.99, torch.float64),
        (0.9993, torch.float32),  # with a patience that does not grow with the rounds it is called stalled
        *(
            pytest.param(c, dtype, marks=pytest.mark.slow)
            for c, dtype in [(0.999, torch.float64), (0.9993, torch.float64), (0.999, torch.float32)]
        ),
    ],
)
def test_a_slow_contraction_converges(c: float, dtype: torch.dtype) -> None:
    """In single precision the error stays the same for many rounds before it falls by a unit in the last place."""
    z0 = torch.zeros(1, 1, dtype=dtype)
    solution = solve(lambda z: c * z + 1, z0, solver="picard", rtol=2e-6, max_rounds=100_000)
    assert solution.converged.all(), solution.message
    # From zero the residual after k rounds is c^k, the value (1 - c^(k+1)) / (1 - c).
    k = np.arange(100_000)
    exact = int(np.argmax(c**k <= 2e-6 * (1 - c ** (k + 1)) / (1 - c))) + 1
    assert abs(int(solution.rounds[0]) - exact) <= 0.05 * exact


def test_a_small_relaxation_of_a_contraction_converges() -> None:
    slow = {"name": "picard", "relaxation": 0.02}
    solution = solve(lambda z: 0.5 * z + 1, 0.0, solver=slow, max_rounds=100_000)
    assert solution.converged.all()
    assert solution.z == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize(
    ("solver", "rate", "k0"),
    [
        ("picard", 0.05, 0.01),
        ("picard", 0.05, 1e-4),
        ("squarem", 0.05, 0.01),
        ("squarem", 0.05, 1e-4),
        pytest.param("auto", 0.05, 0.01, marks=pytest.mark.slow),
        ("auto", 0.05, 1e-4),
    ],
)
def test_growth_from_little_capital_reaches_the_steady_state(solver: str, rate: float, k0: float) -> None:
    """Solow's model: the residual rises for tens of rounds, then falls; zero is a fixed point, too, that repels."""
    with np.errstate(invalid="ignore"):  # extrapolation leads to capital below zero
        found = solve(lambda k: 0.2 * k**0.33 + (1 - rate) * k, np.array([k0]), solver=solver, max_rounds=4000)
    assert found.converged.all(), found.message
    assert found.z == pytest.approx((0.2 / rate) ** (1 / 0.67), rel=1e-4)


def test_an_em_iteration_that_leaves_a_saddle_converges() -> None:
    """Power iteration from beside the second eigenvector, where nothing but rounding leads away at first."""
    matrix = torch.diag(torch.tensor([1.0, 0.9, 0.2], dtype=torch.float64))
    z0 = torch.tensor([[1e-9, 1.0, 0.0]], dtype=torch.float64)

    def f(z: torch.Tensor) -> torch.Tensor:
        image = z @ matrix
        return image / torch.linalg.vector_norm(image, dim=1, keepdim=True)

    solution = solve(f, z0, solver="picard", rtol=1e-10, max_rounds=2000)
    assert solution.converged.all(), solution.message
    assert torch.allclose(solution.z, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), atol=1e-8)
    error = solution.trace.error[:, 0]
    assert int(error.argmax()) > 100  # it rose for longer than the patience


def test_an_error_that_falls_rises_and_falls_converges() -> None:
    """As EM's does on its way past a saddle: the peak is neither the largest error nor the fall from it a record."""
    z0 = torch.tensor([[1.0, 1e-5]], dtype=torch.float64)

    def f(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([0.5 * z[:, 0], z[:, 1] + 0.1 * z[:, 1] * (1 - z[:, 1])], dim=1)

    solution = solve(f, z0, solver="picard", rtol=1e-8, max_rounds=1000)
    assert solution.converged.all(), solution.message
    error = solution.trace.error[:, 0]
    least = int(error[:50].argmin())
    peak = least + int(error[least:].argmax())
    assert peak > least + 60
    assert error[peak] < error[0]
    assert torch.allclose(solution.z, torch.tensor([[0.0, 1.0]], dtype=torch.float64), atol=1e-6)


CAUGHT = {
    "a cycle of two": lambda z: 2.0 - z,
    "a cycle of three": lambda z: 3.831874 * z * (1 - z),
    "chaos": lambda z: 3.99 * z * (1 - z),
}


@pytest.mark.parametrize("name", CAUGHT)
def test_what_goes_round_or_wanders_is_stalled(name: str) -> None:
    z0 = torch.tensor([[0.3]], dtype=torch.float64)
    solution = solve(CAUGHT[name], z0, solver="picard", max_rounds=5000)
    assert solution.status == (Status.STALLED,)
    assert int(solution.rounds[0]) < 2000
    assert "cycle or wander" in solution.message


def test_the_advice_for_a_cycle_helps() -> None:
    half = {"name": "picard", "relaxation": 0.5}
    assert solve(lambda z: 2.0 - z, torch.tensor([[0.3]]), solver=half).converged.all()


def test_patience_is_a_least_number_and_a_quarter_of_the_rounds() -> None:
    z0 = torch.tensor([[0.0]], dtype=torch.float64)
    quick = solve(lambda z: 2.0 - z, z0, solver="picard", termination=Termination(patience=7))
    assert int(quick.rounds[0]) == 7
    # It falls for 400 rounds and then goes round.
    solution = solve(
        lambda z: torch.where(z < 400, z + 1 - z / 1000, 800.5 - z), z0, solver="picard", max_rounds=5000, rtol=1e-9
    )
    assert solution.status == (Status.STALLED,)
    falling = int(np.argmin(solution.trace.error[:, 0]))
    assert int(solution.rounds[0]) >= 1.3 * falling
