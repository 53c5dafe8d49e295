"""Unrolling from wherever a solve begins: the derivative of a solved row is the fixed point's, by closed forms."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

import fixedpoint as fp
from fixedpoint.gradients.completed import UnrolledWarning

EYE = torch.eye(2, dtype=torch.float64)
WEIGHT = torch.tensor([[0.3, 0.1], [0.0, 0.2]], dtype=torch.float64)
OFFSET = torch.tensor([[1.0, 1.0], [0.5, -2.0], [3.0, 0.2]], dtype=torch.float64)
FIXED = OFFSET @ torch.linalg.inv(EYE - WEIGHT)
UNROLLING: list[Any] = ["unrolled", "checkpointed-unrolled", fp.CheckpointedUnrolled(every=1)]
SOLVERS = ["picard", "anderson", "broyden", "aitken", "squarem", "anderson-type1", "damped", "restarted"]
# Where rows begin: all or some solved, one of them but for its last digits, two in a quick direction, none.
STARTS = {
    "solved": FIXED,
    "cold": 0 * FIXED,
    "mixed": FIXED * torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64),
    "nearly": FIXED * torch.tensor([[1.0], [1 + 1e-9], [1 + 1e-4]], dtype=torch.float64),
}
COTANGENT = torch.tensor([[1.0, -1.0], [0.3, 2.0], [-1.0, 0.5]], dtype=torch.float64)


def closed_form(weight: torch.Tensor, offset: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of ``b (I - W)^{-1}``."""
    weight, offset = weight.detach().clone().requires_grad_(), offset.detach().clone().requires_grad_()
    return torch.autograd.grad((g * (offset @ torch.linalg.inv(EYE - weight))).sum(), (weight, offset))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("gradient", UNROLLING, ids=str)
def test_whatever_the_rows_begin_with_the_gradient_is_that_of_the_fixed_point(
    gradient: Any, solver: str, start: str
) -> None:
    weight, offset = WEIGHT.clone().requires_grad_(), OFFSET.clone().requires_grad_()
    solution = fp.solve(lambda z: z @ weight + offset, STARTS[start], solver=solver, gradient=gradient, rtol=1e-10)
    assert solution.converged.all()
    found = torch.autograd.grad((COTANGENT * solution.z).sum(), (weight, offset))
    for one, other in zip(found, closed_form(WEIGHT, OFFSET, COTANGENT), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("gradient", UNROLLING, ids=str)
def test_a_start_at_zero_that_is_solved_along_a_quick_direction_is_no_exception(gradient: Any) -> None:
    """The value is exact after a round, and the derivative lies where the map is slow."""
    weight = torch.tensor([[0.9, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    offset = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    start = torch.zeros_like(offset)
    solution = fp.solve(lambda z: z @ weight + offset, start, solver="picard", gradient=gradient, rows="independent")
    assert solution.rounds[0] == 2
    g = torch.ones_like(offset)
    (found,) = torch.autograd.grad((g * solution.z).sum(), weight)
    torch.testing.assert_close(found, closed_form(weight, offset, g)[0], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gradient", UNROLLING[:2])
def test_rows_that_end_at_the_floor_of_the_dtype_are_solved(gradient: Any) -> None:
    weight = WEIGHT.clone().requires_grad_()
    solution = fp.solve(
        lambda z: z @ weight + OFFSET + 1e-15 * torch.sin(1e16 * z.detach()),
        FIXED,
        solver="picard",
        gradient=gradient,
        rtol=0.0,
    )
    assert not solution.converged.all()
    (found,) = torch.autograd.grad((COTANGENT * solution.z).sum(), weight)
    torch.testing.assert_close(found, closed_form(WEIGHT, OFFSET, COTANGENT)[0], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gradient", UNROLLING[:2])
def test_beside_solved_rows_one_that_is_not_has_the_derivative_of_what_was_computed(gradient: Any) -> None:
    rates = torch.tensor([[0.5], [0.5], [0.99]], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[2.0], [0.0], [0.0]], dtype=torch.float64, requires_grad=True)
    solution = fp.solve(lambda z: rates * z + 1, start, solver="picard", gradient=gradient, rtol=1e-9, max_rounds=60)
    assert [status.label for status in solution.status] == ["converged", "converged", "max_rounds"]
    by_rate, by_start = torch.autograd.grad(solution.z.sum(), (rates, start))
    rate, z = rates.detach()[2].clone().requires_grad_(), start.detach()[2].clone().requires_grad_()
    state = z
    for _ in range(59):  # sixty evaluations: the last one judges
        state = rate * state + 1
    wanted = torch.autograd.grad(state.sum(), (rate, z))
    torch.testing.assert_close(by_rate, torch.stack([*(4 * torch.ones(2, 1).double()), wanted[0]]), rtol=1e-6, atol=0)
    torch.testing.assert_close(by_start, torch.stack([*torch.zeros(2, 1).double(), wanted[1]]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("gradient", UNROLLING[:2])
def test_what_enters_by_the_start_alone_has_the_gradient_zero_from_solved_rows(gradient: Any) -> None:
    shift = torch.tensor(1e-9, dtype=torch.float64, requires_grad=True)
    solution = fp.solve(lambda z: z @ WEIGHT + OFFSET, FIXED + shift, solver="picard", gradient=gradient, rtol=1e-6)
    (found,) = torch.autograd.grad(solution.z.sum(), shift)
    assert float(found) == 0.0


@pytest.mark.parametrize("gradient", UNROLLING[:2])
def test_a_row_that_fails_at_its_start_is_told(gradient: Any) -> None:
    weight = WEIGHT.clone().requires_grad_()
    with pytest.warns(UnrolledWarning, match=r"1 of 3 rows ended unsolved where they had begun \(1 max_rounds\)"):
        solution = fp.solve(
            lambda z: z @ weight + OFFSET, STARTS["mixed"], solver="picard", gradient=gradient, max_rounds=1
        )
    (found,) = torch.autograd.grad((COTANGENT * solution.z).sum(), weight)
    solved = COTANGENT * torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(found, closed_form(WEIGHT, OFFSET, solved)[0], rtol=1e-5, atol=1e-8)


def test_second_derivatives_and_tangents_from_a_solved_start() -> None:
    """z = b / (1 - a): dz/da = b / (1 - a)^2, d2z/da2 = 2 b / (1 - a)^3."""
    a = torch.tensor([[0.5], [-0.3]], dtype=torch.float64, requires_grad=True)
    solved = torch.tensor([[4.0], [2 / 1.3]], dtype=torch.float64)
    solution = fp.solve(lambda z: a * z + 2, solved, solver="picard", gradient="unrolled", rows="independent")
    (first,) = torch.autograd.grad(solution.z.sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), a)
    torch.testing.assert_close(first.detach(), 2 / (1 - a.detach()) ** 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(second, 4 / (1 - a.detach()) ** 3, rtol=1e-5, atol=0)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning), forward_ad.dual_level():  # torch's own
        dual = forward_ad.make_dual(a.detach(), torch.ones_like(a))
        moved = fp.solve(lambda z: dual * z + 2, solved, solver="picard", gradient="unrolled", rows="independent")
        tangent = forward_ad.unpack_dual(moved.z).tangent
    torch.testing.assert_close(tangent, 2 / (1 - a.detach()) ** 2, rtol=1e-5, atol=0)


def test_it_is_counted_and_reported_and_can_be_left_out() -> None:
    weight = WEIGHT.clone().requires_grad_()
    calls: list[int] = []

    def f(z: torch.Tensor) -> torch.Tensor:
        calls.append(len(z))
        return z @ weight + OFFSET

    for gradient, made in ((fp.Unrolled(), 2), (fp.CheckpointedUnrolled(), 2), (fp.Unrolled(complete=False), 1)):
        calls.clear()
        solution = fp.solve(f, FIXED, solver="picard", gradient=gradient, rtol=1e-10)
        assert (len(calls), solution.counts.calls, solution.counts.rounds) == (made, made, made)
        assert (solution.evaluations == made).all()
    assert not solution.state.requires_grad  # as computed: nothing was
    solution = fp.solve(f, FIXED, solver="picard", gradient="unrolled", rtol=1e-10)
    solution.z.sum().backward()
    assert solution.extras["adjoint"].converged.all()
    assert solution.extras["adjoint"].relative_error.max() <= 1e-10


def test_an_implicit_gradient_is_as_exact_as_its_solve_unless_it_is_told() -> None:
    weight = WEIGHT.clone().requires_grad_()

    def made(gradient: Any, **options: Any) -> tuple[int, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            solution = fp.solve(lambda z: z @ weight + OFFSET, 0 * FIXED, solver="picard", gradient=gradient, **options)
            (COTANGENT * solution.z).sum().backward()
        report = solution.extras["adjoint"]
        return int(report.products.max()), float(report.relative_error.max())

    slow = {"name": "implicit", "solver": "picard"}
    loose, tight = made(slow, rtol=1e-2), made(slow, rtol=1e-11)
    assert loose[0] < tight[0]
    assert 1e-11 < loose[1] <= 1e-2
    assert tight[1] <= 1e-11
    assert made({**slow, "termination": {"rtol": 1e-11}}, rtol=1e-2) == tight
    assert made(slow, rtol=0.0, atol=10.0)[1] <= 1e-6  # the units of the state say nothing of a cotangent
    assert made(slow, rtol=1e-11, atol=10.0)[1] <= 1e-11
    assert made(slow, rtol=1e-6, max_rounds=40)[1] <= 1e-6
