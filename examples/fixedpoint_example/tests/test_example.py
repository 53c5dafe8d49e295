"""Tests of the example package, by the conformance suite and by closed forms."""

from __future__ import annotations

import pytest
import torch
from fixedpoint_example.irons_tuck import IronsTuck
from fixedpoint_example.lyusternik import Lyusternik
from fixedpoint_example.random_mdp import RandomMDP

import fixedpoint
from fixedpoint import OneStep, Unrolled
from fixedpoint.plugin import Context, OptionError
from fixedpoint.testing import affine_contraction, check_solver


def test_the_solver_does_what_solvers_promise():
    check_solver(IronsTuck()).raise_for_failures()


def test_one_eigenvalue_is_solved_at_once():
    problem = affine_contraction((0.9, 0.9, 0.9), seed=1)
    assert fixedpoint.solve(problem, solver=IronsTuck(longest=100.0), rtol=1e-10).counts.rounds <= 4


def test_options_are_checked():
    with pytest.raises(OptionError, match=r"shortest must not exceed longest, 1.0, got 2.0"):
        IronsTuck(shortest=2.0, longest=1.0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_cotangent_along_one_eigenvector_needs_no_more(count):
    problem = affine_contraction((0.6, -0.4, 0.2), rows=2, seed=2)
    values, vectors = torch.linalg.eigh(problem.matrix)
    g, value = vectors[:, :, 2], values[:, 2:]
    found = _found(problem, Lyusternik(products=count), g)
    assert torch.allclose(found, g / (1 - value), rtol=1e-12)


def test_the_guess_is_worth_many_terms():
    problem = affine_contraction((0.9, -0.3, 0.2), rows=2, seed=2)
    g = torch.randn(2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - problem.matrix.mT, g)
    guessed, summed = (_found(problem, gradient, g) - exact for gradient in (Lyusternik(8), fixedpoint.Neumann(9)))
    assert guessed.norm() < 1e-3 * summed.norm()


def _found(problem, gradient, g):
    offset = problem.offset.clone().requires_grad_()
    solution = fixedpoint.solve(
        lambda z: (problem.matrix * z.unsqueeze(1)).sum(-1) + offset,
        problem.initial(),
        gradient=gradient,
        rtol=1e-12,
    )
    return torch.autograd.grad((solution.z * g).sum(), offset)[0]


def test_policy_iteration_solves_bellmans_equation():
    problem = RandomMDP(states=6, actions=3, discount=0.8, batch=2).problem(seed=4)
    values, visits = problem.policy_iteration()
    assert torch.allclose(problem(values), values, rtol=1e-12)
    assert torch.allclose((visits * problem.rewards).sum((1, 2)), values.sum(1), rtol=1e-12)


@pytest.mark.parametrize(
    ("gradient", "bound"), [(OneStep(), 1.0), (Lyusternik(products=200), 1e-8), (Unrolled(), 1e-3)], ids=str
)
def test_the_task_knows_values_and_gradients(gradient, bound):
    context = Context(
        solver=IronsTuck(),
        termination=fixedpoint.Termination(rtol=1e-10),
        seed=5,
        gradient=gradient,
    )
    result = RandomMDP(states=8, discount=0.8).run(context)
    assert result.status == {"converged": 4}
    assert result.metrics["relative_error"] <= 1e-9
    assert result.metrics["gradient_error"] <= bound
