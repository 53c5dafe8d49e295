"""Maps that are not defined everywhere: what leaves the domain of ``f`` comes back by plain steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fixedpoint import Status, solve

STEP_SOLVERS = ("anderson", "anderson-type1", "broyden", "aitken", "squarem", "picard", "auto")


def ratio(n):
    """SciPy's issue 5460: the fixed point is 1.3; residuals grow first, and the first secants leave the domain."""
    return math.log(3 / n) / math.log(3.7477525683 * n / (n - 1)) + 1


def ratio_of_arrays(n):
    with np.errstate(all="ignore"):
        return np.log(3 / n) / np.log(3.7477525683 * n / (n - 1)) + 1


@pytest.mark.parametrize("solver", STEP_SOLVERS)
@pytest.mark.parametrize("kind", ["float", "array", "rows"])
def test_a_row_that_leaves_the_domain_comes_back_by_plain_steps(solver, kind):
    if kind == "rows":
        start = torch.tensor([[1.001], [1.2], [1.01]], dtype=torch.float64)
        found = solve(lambda n: torch.log(3 / n) / torch.log(3.7477525683 * n / (n - 1)) + 1, start, solver=solver)
        alone = solve(lambda n: ratio_of_arrays(n), np.array([[1.001]]), solver=solver)
        assert float(found.z[0, 0]) == pytest.approx(float(alone.z[0, 0]), rel=1e-9)
    else:
        found = solve(
            ratio if kind == "float" else ratio_of_arrays,
            1.001 if kind == "float" else np.array([1.001]),
            solver=solver,
        )
    assert found.converged.all(), found.message
    assert np.asarray(found.z) == pytest.approx(1.3, rel=1e-5)
    assert found.evaluations.max() <= 12


def strict(x):
    with np.errstate(all="raise"):
        return float(np.log(np.float64(-x)))


RAISES = {
    "math domain error": lambda x: math.log(-x),
    "expected a": lambda x: math.sqrt(-x),
    "division": lambda x: 1.0 / (x - x),
    "OverflowError": lambda x: math.exp(1e6 * x),
    "complex": lambda x: (-x) ** 0.5,
    "FloatingPointError": strict,
    "Singular": lambda x: float(np.linalg.inv(np.full((2, 2), x))[0, 0]),
    "singular": lambda x: float(torch.linalg.inv(torch.full((2, 2), x))[0, 0]),
}


@pytest.mark.parametrize("name", RAISES)
@pytest.mark.parametrize("call", [2, 3, 5])
def test_what_arithmetic_of_floats_raises_is_what_arrays_return_nan_for(name, call):
    calls = []

    def f(x):
        calls.append(x)
        return RAISES[name](x) if len(calls) == call else math.cos(x)

    found = solve(f, 1.0)
    assert found.converged.all(), found.message
    assert found.z == pytest.approx(0.7390851332151607, rel=1e-5)
    assert len(calls) == found.evaluations[0] == found.counts.calls


@pytest.mark.parametrize("name", RAISES)
def test_at_the_start_such_an_exception_is_raised(name):
    with pytest.raises((ArithmeticError, ValueError, RuntimeError, TypeError)) as caught:
        solve(RAISES[name], 1.0)
    if name == "complex":
        assert "for complex states start from a complex z0" in str(caught.value)


def test_other_exceptions_are_raised_at_any_point():
    calls = []

    def f(x):
        calls.append(x)
        if len(calls) == 3:
            raise ValueError("no such table")
        return math.cos(x)

    with pytest.raises(ValueError, match="no such table") as caught:
        solve(f, 1.0)
    assert caught.value.__notes__ == ["raised by f in round 3 of the solve"]


def test_of_several_rows_an_exception_says_nothing_and_is_raised():
    calls = []

    def f(x):
        calls.append(x)
        return np.cos(x) if len(calls) < 3 else x + math.log(-1.0)

    with pytest.raises(ValueError, match=r"math domain error|expected a"):
        solve(f, np.ones((2, 1)))


def test_a_function_without_a_fixed_point_in_its_domain_says_what_it_raised():
    found = solve(lambda x: math.sqrt(x - 1) - 1, 4.0)
    assert found.status == (Status.NONFINITE,)
    assert math.isfinite(found.z)
    assert "It raised ValueError: " in found.message
    assert "times)" in found.message


@pytest.mark.parametrize("gradient", ["unrolled", "checkpointed-unrolled"])
def test_gradients_go_through_the_plain_steps(gradient):
    constant = torch.tensor(3.7477525683, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[1.001]], dtype=torch.float64)

    def slope(estimator):
        found = solve(
            lambda n: torch.log(3 / n) / torch.log(constant * n / (n - 1)) + 1,
            start,
            solver="anderson",
            gradient=estimator,
            rtol=1e-12,
        )
        return float(torch.autograd.grad(found.z.sum(), constant)[0])

    assert slope(gradient) == pytest.approx(slope("implicit"), rel=1e-6)


class Cliff:
    """A contraction that is NaN at chosen calls, as a map that is undefined at extrapolated points."""

    def __init__(self, calls: set[int]) -> None:
        self.calls, self.made = calls, 0

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        self.made += 1
        scale = torch.linspace(0.1, 0.9, z.shape[1], dtype=z.dtype)
        value = scale * z.sin() + 1.0
        return torch.full_like(value, torch.nan) if self.made in self.calls else value


@given(
    solver=st.sampled_from([name for name in STEP_SOLVERS if name not in ("picard", "auto")]),
    first=st.integers(3, 6),
    gaps=st.lists(st.integers(0, 3), max_size=3),
)
def test_each_rescue_is_followed_by_twice_as_many_plain_steps(solver, first, gaps):
    """NaN after the k-th rescue is met again only when its ``2^k - 1`` plain steps are over."""
    calls, at = set(), first
    for number, gap in enumerate([*gaps, 0], start=1):
        calls.add(at)
        at += 2**number + gap
    f = Cliff(calls)
    found = solve(f, torch.zeros(1, 6, dtype=torch.float64), solver=solver, rtol=1e-10)
    assert found.converged.all(), (found.message, calls)
    assert found.counts.rounds == f.made


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_plain_step_that_leaves_the_domain_ends_the_row(after):
    """The second NaN comes during the plain steps of the second rescue."""
    f = Cliff({3, 5, 5 + after, 6 + after, 7 + after, 8 + after, 9 + after})
    found = solve(f, torch.zeros(1, 6, dtype=torch.float64), solver="anderson", rtol=1e-14)
    assert found.status == (Status.NONFINITE,)
    assert f.made == 5 + after
    assert torch.isfinite(found.z).all()


def test_plain_iteration_is_not_repeated():
    """Without a history, the same steps would lead out of the domain again."""
    f = Cliff({4})
    found = solve(f, torch.zeros(1, 6, dtype=torch.float64), solver="picard")
    assert found.status == (Status.NONFINITE,)
    assert f.made == 4
