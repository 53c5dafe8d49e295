"""Roots: what ``find_root`` calls one is one, in whatever units ``z`` and ``g`` are; and what has none gets none."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import fixedpoint

SOLVERS = (
    "broyden",
    "auto",
    "anderson",
    "anderson-type1",
    "newton-krylov",
    "squarem",
    "aitken",
    "newton",
    {"name": "newton", "damping": "none"},
    "trust-region",
    fixedpoint.Auto(),
)
STARTS = (0.0, 1.0, 3.0, -2.0, 1e4)

WITHOUT_ROOTS = {
    "a parabola above zero": lambda x: x * x + 1,
    "one barely above it": lambda x: x * x + 1e-7,
    "exp": torch.exp,
    "exp(-x^2)": lambda x: torch.exp(-x * x),
    "a sigmoid": torch.sigmoid,
    "atan + 2": lambda x: torch.atan(x) + 2,
    "a jump": lambda x: torch.where(x < 0, -1.0, 2.0).to(x),
    "log(2 + x^2)": lambda x: torch.log(2 + x * x),
}
WITH_ROOTS = {
    "x^3 - 5": (lambda x: x**3 - 5, 5 ** (1 / 3)),
    "exp - 10": (lambda x: torch.exp(x) - 10, math.log(10)),
    "cos x - x": (lambda x: torch.cos(x) - x, 0.7390851332151607),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_what_has_no_root_gets_none(solver: Any, dtype: torch.dtype) -> None:
    """All of them at once, from every start: a row each."""
    z0 = torch.tensor(STARTS, dtype=dtype).repeat(len(WITHOUT_ROOTS)).unsqueeze(1)

    def g(x: torch.Tensor) -> torch.Tensor:
        parts = x.split(len(STARTS))
        return torch.cat([each(part) for each, part in zip(WITHOUT_ROOTS.values(), parts, strict=True)])

    solution = fixedpoint.find_root(g, z0, solver=solver, max_rounds=150)
    nonzero = (g(z0)[:, 0] != 0).numpy()  # exp(-1e8) is zero, exactly, at the start
    assert not (solution.converged & nonzero).any(), solution.z[torch.from_numpy(solution.converged & nonzero)]


@pytest.mark.parametrize("units", [1e-12, 1e-6, 1e6])
@pytest.mark.parametrize("name", WITH_ROOTS)
def test_a_root_is_a_root_in_any_units_of_g(name: str, units: float) -> None:
    g, root = WITH_ROOTS[name]
    z0 = torch.tensor([[2.0]], dtype=torch.float64)
    solution = fixedpoint.find_root(lambda x: units * g(x), z0)
    assert solution.converged.all(), solution.message
    assert float(solution.z) == pytest.approx(root, rel=1e-5)
    assert float(solution.error) == abs(float(units * g(solution.z)))


@pytest.mark.parametrize("multiplicity", [2, 3, 5, 7])
def test_a_multiple_root_is_one(multiplicity: int) -> None:
    """``|g|`` falls far sooner than the steps that it implies; the root is as many such steps away."""
    solution = fixedpoint.find_root(lambda x: (x - 3) ** multiplicity, torch.tensor([[2.0]], dtype=torch.float64))
    assert solution.converged.all(), solution.message
    assert float(solution.z) == pytest.approx(3.0, rel=2e-6 * multiplicity)


@pytest.mark.parametrize("units", [1e-8, 1e8])
def test_and_in_any_units_of_z(units: float) -> None:
    z0 = torch.tensor([[2.0 * units]], dtype=torch.float64)
    solution = fixedpoint.find_root(lambda x: (x / units) ** 3 - 5, z0)
    assert solution.converged.all(), solution.message
    assert float(solution.z) == pytest.approx(5 ** (1 / 3) * units, rel=3e-6)


def test_a_step_that_runs_far_out_is_no_root_and_auto_finds_the_one_there_is() -> None:
    with np.errstate(over="ignore"):
        solution = fixedpoint.find_root(lambda x: np.exp(x) - 10, 10.0, solver="auto", sign=-1.0)
    assert solution.converged.all()
    assert solution.z == pytest.approx(math.log(10), rel=1e-5)


@pytest.mark.parametrize(
    "g", [lambda x: torch.exp(-x), lambda x: torch.exp(-x * x / 50), lambda x: 1e9 * torch.exp(-x)]
)
@pytest.mark.parametrize("solver", ["broyden", "newton-krylov"])
def test_what_underflows_far_out_is_said_to_vanish_there(g: Any, solver: str) -> None:
    """Step by step, until 1e-45 is all that single precision has; and by one long step."""
    z0 = torch.ones(1, 1)
    solution = fixedpoint.find_root(g, z0, solver=solver, max_rounds=1000)
    assert not solution.converged.any()
    assert "g vanishes far out" in solution.message
    jumped = fixedpoint.find_root(g, z0, solver=solver, sign=1e4, max_rounds=1000)
    assert not jumped.converged.any()


@pytest.mark.parametrize("name", ["exp(-x)", "exp(-x^2)", "a sigmoid"])
@pytest.mark.parametrize("solver", ["broyden", "anderson"])
def test_a_loose_tolerance_makes_no_root_of_what_vanishes(name: str, solver: str) -> None:
    """At 1e-2 the steps of 1 towards ``exp(-70)`` are short beside 70; a hundred orders of ``g`` tell."""
    g = {"exp(-x)": lambda x: torch.exp(-x), **WITHOUT_ROOTS}[name]
    z0 = torch.ones(1, 1, dtype=torch.float64)
    solution = fixedpoint.find_root(g, z0, solver=solver, rtol=1e-2, max_rounds=150)
    assert not solution.converged.any(), solution.z
    assert "g vanishes far out" in solution.message


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
@pytest.mark.parametrize("solver", ["auto", "anderson", "newton-krylov"])
def test_one_stiff_unknown_says_nothing_of_the_others(solver: str, rtol: float) -> None:
    """Powell's badly scaled function (More, Garbow & Hillstrom 1981, 3): the first slope is 1e4, and ``g`` is 1."""

    def g(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([1e4 * x[0] * x[1] - 1, torch.exp(-x[0]) + torch.exp(-x[1]) - 1.0001])

    z0 = torch.tensor([0.0, 1.0], dtype=torch.float64)
    solution = fixedpoint.find_root(g, z0, solver=solver, rtol=rtol, max_rounds=150)
    assert float(solution.error) <= rtol * float(g(z0).norm()) or not solution.converged.any(), solution.z


def test_a_root_at_zero_is_told_of() -> None:
    """Relative to nothing no step is small: the sentence says what such a root requires."""
    z0 = torch.tensor([[0.3, 0.2]], dtype=torch.float64)
    scales = torch.tensor([1.0, 5.0], dtype=torch.float64)
    solution = fixedpoint.find_root(lambda x: scales * x, z0, solver="broyden", max_rounds=40)
    assert not solution.converged.any()
    assert "a root at z = 0 requires" in solution.message
    for solver in ("broyden", "auto"):
        assert fixedpoint.find_root(lambda x: scales * x, z0, solver=solver, atol=1e-9).converged.all()


@pytest.mark.parametrize("start", [5 ** (1 / 3), 5 ** (1 / 3) * (1 + 1e-9), 5 ** (1 / 3) * (1 + 1e-7)])
def test_a_start_that_is_a_root_stays_it(start: float) -> None:
    solution = fixedpoint.find_root(lambda x: x**3 - 5, np.array([start]))
    assert solution.converged.all(), solution.message
    assert solution.z == pytest.approx(5 ** (1 / 3), rel=1e-6)
    assert int(solution.evaluations[0]) <= 6


def test_infinity_is_no_root() -> None:
    """Where ``g`` has all but underflowed no factor makes a step of it; and one that is given may lead to infinity."""
    z0 = torch.tensor([[726.0]], dtype=torch.float64)
    for sign in (None, 1e308):
        solution = fixedpoint.find_root(lambda x: torch.exp(-x), z0, sign=sign, solver="aitken", max_rounds=50)
        assert solution.z.isfinite().all()
        assert not solution.converged.any()
    far = fixedpoint.find_root(lambda x: 1 / (1 + x), torch.ones(1, 1), sign=1e38, solver="picard", max_rounds=50)
    assert far.z.isfinite().all()
    assert not far.converged.any()


def test_an_absolute_tolerance_is_enough_by_itself() -> None:
    solution = fixedpoint.find_root(lambda x: x * x + 1e-7, np.array([1.0]), atol=1e-6)
    assert solution.converged.all()
    assert float(solution.error) <= 1e-6


def test_rows_are_judged_one_by_one() -> None:
    """Rows with a root beside one without; alone each is the same to the bit."""
    shift = torch.tensor([[-5.0], [1.0], [-5.0]], dtype=torch.float64)
    z0 = torch.tensor([[1.5], [1.0], [-2.0]], dtype=torch.float64)
    solution = fixedpoint.find_root(lambda x: x * x + shift, z0, max_rounds=100)
    assert solution.converged.tolist() == [True, False, True]
    for row in (0, 2):
        part = slice(row, row + 1)
        alone = fixedpoint.find_root(lambda x, part=part: x * x + shift[part], z0[part], max_rounds=100)
        assert torch.equal(alone.z, solution.z[part])
        assert alone.evaluations[0] == solution.evaluations[row]
        assert alone.counts.products[0] == solution.counts.products[row]


def test_an_explicit_sign_is_taken_as_it_is() -> None:
    seen = []
    fixedpoint.find_root(lambda x: seen.append(x) or 100.0 * (x - 1), 3.0, solver="picard", sign=0.5, max_rounds=2)
    assert seen == [3.0, 103.0]


def test_what_is_differentiated_is_the_root() -> None:
    """``x^3 = a``: ``dx/da = 1 / (3 x^2)``, whatever the units of ``g``."""
    a = torch.tensor([[5.0], [7.0]], dtype=torch.float64, requires_grad=True)
    solution = fixedpoint.find_root(lambda x: 1e-7 * (x**3 - a), torch.full_like(a, 2.0), gradient="implicit")
    solution.z.sum().backward()
    assert torch.allclose(a.grad, 1 / (3 * a.detach() ** (2 / 3)), rtol=1e-4)


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_from_within_a_tail_the_first_slope_is_no_measure_of_it(solver: str) -> None:
    """``exp(-x^2)`` from 1e-229: the first secant is a long one, and implies too long a step."""
    z0 = torch.tensor([[-22.96]], dtype=torch.float64)
    for rtol in (1e-2, 1.3e-3, 1e-4):
        solution = fixedpoint.find_root(lambda x: torch.exp(-x * x), z0, solver=solver, rtol=rtol, max_rounds=60)
        assert not solution.converged.any(), solution.message
