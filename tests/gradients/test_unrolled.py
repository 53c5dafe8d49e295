"""The unrolled gradient: backpropagation through a loop written by hand, and the implicit gradient in the limit."""

from __future__ import annotations

import pytest
import torch

from fixedpoint import (
    Aitken,
    Anderson,
    AndersonTypeOne,
    Auto,
    Broyden,
    Damped,
    Picard,
    Restarted,
    Squarem,
    Unrolled,
    solve,
)
from fixedpoint.gradients.completed import UnrolledWarning
from fixedpoint.testing.problems import affine_contraction

SOLVERS = [Picard(), Picard(relaxation=0.7), Anderson(memory=2), Broyden(memory=3)]
MORE = [
    Anderson(relaxation=0.7),
    Anderson(adaptive="gain"),
    Anderson(memory=2, adaptive="distance"),
    Anderson(ridge=1e-3),
    Anderson(filter=0.3, surprise=2.0),
    Anderson(mixing="block"),
    AndersonTypeOne(memory=2),
    Broyden(memory=2),
    Broyden(memory=2, update="bad"),
    Aitken(),
    Squarem(),
    Squarem(scheme="squarem"),
    Restarted(every=4),
    Damped(solver=Broyden(), damping=0.8),
    Auto(),
]


def _parts(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    weight = 0.3 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    offset = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    return weight.requires_grad_(), offset.requires_grad_()


@pytest.mark.parametrize("relaxation", [1.0, 0.6])
def test_it_equals_backpropagation_through_a_loop_by_hand(relaxation):
    weight, offset = _parts()
    start = torch.zeros(2, 3, dtype=torch.float64)
    solution = solve(
        lambda z: torch.tanh(z @ weight.T + offset),
        start,
        solver=Picard(relaxation=relaxation),
        rtol=1e-14,
        max_rounds=6,
        gradient="unrolled",
    )
    ours = torch.autograd.grad(solution.z.square().sum(), (weight, offset))
    z = start
    for _ in range(5):  # six evaluations: the last one judges the fifth iterate
        z = z + relaxation * (torch.tanh(z @ weight.T + offset) - z)
    theirs = torch.autograd.grad(z.square().sum(), (weight, offset))
    assert torch.allclose(solution.z, z, rtol=1e-14)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_it_tends_to_the_implicit_gradient_on_affine_maps(solver):
    problem = affine_contraction((0.6, -0.4, 0.2), rows=2, normal=False, bound=0.8, seed=1)
    matrix, offset = problem.matrix.clone().requires_grad_(), problem.offset.clone().requires_grad_()
    g = torch.randn(2, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    solution = solve(
        lambda z: (matrix * z.unsqueeze(1)).sum(-1) + offset,
        problem.initial(),
        solver=solver,
        rtol=1e-12,
        max_rounds=200,
        gradient="unrolled",
    )
    of_matrix, of_offset = torch.autograd.grad((solution.z * g).sum(), (matrix, offset))
    u = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - problem.matrix.mT, g)
    assert torch.allclose(of_offset, u, rtol=1e-6, atol=1e-8)
    assert torch.allclose(of_matrix, u.unsqueeze(2) * problem.solution.unsqueeze(1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_the_value_is_that_of_the_solve_without_gradients(solver):
    weight, offset = _parts(2)

    def f(z):
        return torch.tanh(z @ weight.T + offset)

    start = torch.zeros(2, 3, dtype=torch.float64)
    plain = solve(f, start, solver=solver, rtol=1e-8)
    unrolled = solve(f, start, solver=solver, rtol=1e-8, gradient="unrolled")
    assert torch.allclose(unrolled.z, plain.z, rtol=1e-12)
    assert unrolled.status == plain.status
    assert unrolled.counts.rounds == plain.counts.rounds + 1  # what completes the derivative is counted
    as_computed = solve(f, start, solver=solver, rtol=1e-8, gradient=Unrolled(complete=False))
    assert as_computed.counts.rounds == plain.counts.rounds


@pytest.mark.parametrize("solver", SOLVERS + MORE, ids=str)
def test_first_and_second_derivatives_are_those_of_what_was_computed(solver):
    weight, offset = _parts(3)

    def answer(weight, offset):
        return solve(
            lambda z: torch.tanh(z @ weight.T + offset),
            torch.zeros(2, 3, dtype=torch.float64),
            solver=solver,
            rtol=1e-14,
            max_rounds=6,
            gradient="unrolled",
        ).z

    # along random directions; entry by entry takes ten times as long
    assert torch.autograd.gradcheck(answer, (weight, offset), atol=1e-7, rtol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(answer, (weight, offset), atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("scheme", ["cyclic", "squarem"])
def test_so_are_those_of_an_extrapolation_that_is_not_cut(scheme):
    weight, offset = _parts(3)
    slow = 0.65 * torch.eye(3, dtype=torch.float64)  # extrapolated by 1 / (1 - 0.65), less than the first bound

    def answer(weight, offset):
        return solve(
            lambda z: z @ (slow + 0.1 * weight).T + 0.1 * torch.sin(z) + offset,
            torch.zeros(2, 3, dtype=torch.float64),
            solver=Squarem(scheme=scheme),
            rtol=1e-14,
            max_rounds=8,
            gradient="unrolled",
        ).z

    assert torch.autograd.gradcheck(answer, (weight, offset), atol=1e-7, rtol=1e-6, fast_mode=True)


def test_the_second_derivative_is_the_closed_form_on_a_quadratic():
    # z = a z + b with a = 1/2: z* = b / (1 - a), d2z*/da2 = 2 b / (1 - a)^3
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    solution = solve(
        lambda z: a * z + 3.0,
        torch.zeros(1, 1, dtype=torch.float64),
        solver=Picard(),
        rtol=1e-15,
        max_rounds=90,
        gradient="unrolled",
    )
    (first,) = torch.autograd.grad(solution.z.sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first, a)
    assert float(first.detach()) == pytest.approx(3.0 / 0.25, rel=1e-10)
    assert float(second) == pytest.approx(2 * 3.0 / 0.125, rel=1e-9)


def test_rows_that_finish_early_keep_their_own_gradient():
    rates = torch.tensor([[0.1], [0.9]], dtype=torch.float64, requires_grad=True)
    solution = solve(
        lambda z: rates * z + 1,
        torch.zeros(2, 1, dtype=torch.float64),
        solver=Picard(),
        rtol=1e-9,
        gradient="unrolled",
    )
    assert solution.rounds[0] < solution.rounds[1]
    (found,) = torch.autograd.grad(solution.z.sum(), rates)
    assert torch.allclose(found, 1 / (1 - rates.detach()) ** 2, rtol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS + MORE, ids=str)
def test_a_start_at_the_solution_and_rows_that_fail_have_finite_gradients(solver):
    offset = torch.tensor([[1.0], [2.0], [-4.0]], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([[2.0], [0.0], [0.0]], dtype=torch.float64)
    with pytest.warns(UnrolledWarning, match="1 of 3 rows ended unsolved where they had begun \\(1 nonfinite\\)"):
        solution = solve(
            lambda z: torch.where(z < -1, torch.nan, 0.5 * z + offset), start, solver=solver, gradient="unrolled"
        )
    assert solution.status[0].label == "converged"
    assert solution.status[2].label == "nonfinite"
    (found,) = torch.autograd.grad(solution.z[:2].sum(), offset)
    torch.testing.assert_close(found[:2], torch.full_like(found[:2], 2.0))
