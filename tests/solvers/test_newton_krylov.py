"""Newton-Krylov: products that are derivatives, quadratic convergence, steps that are halved, rows on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fixedpoint
from fixedpoint import NewtonKrylov, solve
from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.problem import FunctionProblem
from fixedpoint.testing.problems import HEquation, affine_contraction, tanh_cell


@pytest.mark.parametrize("exact", [True, False])
def test_a_product_is_the_derivative(exact: bool) -> None:
    problem = tanh_cell(size=6, rows=3, gain=1.4, seed=1)
    v = torch.randn(3, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        f = Evaluator(problem)
        at = f(problem.initial())
        f.narrow(np.array([True, False, True]))
        found = f.product(at, v, exact)
    slope = 1 - at.fz**2
    expected = slope * (problem.weight * v.unsqueeze(1)).sum(-1)
    assert torch.allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-12 if exact else 1e-6)
    assert (found[1] == 0).all()
    assert f.counts.rounds == 2
    assert f.counts.products.tolist() == ([1, 0, 1] if exact else [0, 0, 0])
    assert f.counts.evaluations.tolist() == ([1, 1, 1] if exact else [2, 1, 2])


def test_products_are_differences_where_there_is_no_forward_mode() -> None:
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.cos()

    z0 = torch.ones(2, 3, dtype=torch.float64)
    solution = solve(Opaque.apply, z0, solver="newton-krylov", rtol=1e-12)
    assert solution.converged.all()
    assert (solution.counts.products == 0).all()
    assert solve(np.cos, z0.numpy(), solver="newton-krylov", rtol=1e-12).converged.all()
    with pytest.raises(RuntimeError):
        solve(Opaque.apply, z0, solver=NewtonKrylov(jacobian="forward"))


def test_convergence_is_faster_than_linear() -> None:
    c = torch.full((1, 1), 0.99, dtype=torch.float64)
    problem = HEquation(torch.ones(1, 64, dtype=torch.float64), c)
    solution = solve(problem, solver=NewtonKrylov(forcing=1e-4), rtol=1e-13)
    assert solution.converged.all()
    errors = solution.trace.relative[:, 0]
    falls = errors[1:] / errors[:-1]
    assert falls[-1] < falls[0] / 100
    assert len(errors) <= 8


def test_an_affine_map_is_one_linear_system() -> None:
    problem = affine_contraction((0.9, -0.5, 0.3, 0.1), rows=2, normal=False, bound=0.95, seed=3)
    solution = solve(problem, solver=NewtonKrylov(forcing=1e-12), rtol=1e-10)
    assert solution.evaluations.tolist() == [2, 2]
    assert (solution.counts.products <= 5).all()
    assert solution.counts.rounds == 2 + solution.counts.products.max()


def test_steps_that_overshoot_are_halved() -> None:
    """Newton's method on arctan runs away from starts beyond 1.39; rows that need no halving are left alone."""
    starts = torch.tensor([[10.0], [0.5]], dtype=torch.float64)
    solution = solve(lambda z: z - torch.atan(z), starts, solver="newton-krylov", rtol=0.0, atol=1e-10)
    assert solution.converged.all()
    assert float(solution.z.abs().max()) < 1e-9
    alone = solve(lambda z: z - torch.atan(z), starts[1:], solver="newton-krylov", rtol=0.0, atol=1e-10)
    assert torch.equal(alone.z[0], solution.z[1])
    unguarded = NewtonKrylov(halvings=0)
    assert not solve(lambda z: z - torch.atan(z), starts, solver=unguarded, rtol=0.0, atol=1e-10).converged[0]


def test_where_plain_iteration_is_hopeless() -> None:
    """A map that expands everywhere: Newton's method asks for no contraction."""
    problem = FunctionProblem(lambda z: 3 * z + torch.sin(z) - 4, torch.zeros(2, 5, dtype=torch.float64), "independent")
    assert not solve(problem, solver="picard").converged.any()
    assert solve(problem, solver="newton-krylov", rtol=1e-12).converged.all()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20])
def test_the_limit_on_rounds_holds_for_products(limit: int) -> None:
    problem = affine_contraction(np.linspace(-0.9, 0.99, 30), rows=3, seed=1)
    assert solve(problem, solver="newton-krylov", rtol=1e-14, max_rounds=limit).counts.rounds <= limit


def test_it_cannot_be_unrolled() -> None:
    z0 = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(TypeError, match="NewtonKrylov cannot be unrolled"):
        fixedpoint.solve(torch.cos, z0, solver="newton-krylov", gradient="unrolled")
