"""The one-step gradient: the solution's value, one application of f in the backward pass, no second derivative."""

from __future__ import annotations

import pytest
import torch

from fixedpoint import OneStep, Picard, solve
from fixedpoint.testing.problems import affine_contraction


def _parts(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    weight = (0.3 * torch.randn(3, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    offset = torch.randn(2, 3, generator=generator, dtype=torch.float64).requires_grad_()
    cotangent = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    return weight, offset, cotangent


def test_the_value_is_exactly_the_solution():
    weight, offset, _ = _parts()

    def f(z):
        return torch.tanh(z @ weight.T + offset)

    start = torch.zeros(2, 3, dtype=torch.float64)
    constant = solve(f, start, rtol=1e-9)
    attached = solve(f, start, rtol=1e-9, gradient="one-step")
    assert torch.equal(attached.z, constant.z)
    assert attached.z.requires_grad
    assert not constant.z.requires_grad
    assert attached.counts.rounds == constant.counts.rounds + 1
    assert (attached.evaluations == constant.evaluations + 1).all()


def test_the_gradient_is_that_of_one_application_by_hand():
    weight, offset, g = _parts(1)

    def f(z):
        return torch.tanh(z @ weight.T + offset)

    solution = solve(f, torch.zeros(2, 3, dtype=torch.float64), rtol=1e-10, gradient=OneStep())
    (solution.z * g).sum().backward()
    z = solution.z.detach()
    with torch.no_grad():
        through = g * (1 - torch.tanh(z @ weight.T + offset) ** 2)  # g^T d tanh
    assert torch.allclose(offset.grad, through, rtol=1e-13)
    assert torch.allclose(weight.grad, through.T @ z, rtol=1e-13)


def test_its_bias_is_the_jacobian_it_leaves_out():
    problem = affine_contraction((0.5, -0.3, 0.1), rows=2, seed=2)
    offset = problem.offset.clone().requires_grad_()

    def f(z):
        return (problem.matrix * z.unsqueeze(1)).sum(-1) + offset

    solution = solve(f, problem.initial(), rtol=1e-12, gradient="one-step")
    solution.z.sum().backward()
    assert torch.equal(offset.grad, torch.ones_like(offset))  # u = g
    exact = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - problem.matrix.mT, torch.ones_like(offset))
    missing = torch.linalg.vector_norm(exact - offset.grad, dim=1) / torch.linalg.vector_norm(exact, dim=1)
    assert bool((missing <= torch.linalg.matrix_norm(problem.matrix, 2) + 1e-12).all())


@pytest.mark.parametrize("loss", [torch.square, torch.Tensor.double], ids=["quadratic", "linear"])
@pytest.mark.parametrize("of", ["gradient", "backward"])
def test_a_second_derivative_is_refused(loss, of):
    # The linear loss sends a constant cotangent: its second derivative would leave out how the solution moves.
    weight, offset, _ = _parts(3)
    solution = solve(
        lambda z: torch.tanh(z @ weight.T + offset), torch.zeros(2, 3, dtype=torch.float64), gradient="one-step"
    )
    (first,) = torch.autograd.grad(loss(solution.z).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only; gradient='implicit' and gradient='unrolled' give"):
        _ = torch.autograd.grad(first.sum(), weight) if of == "gradient" else first.sum().backward()


def test_structured_states_carry_gradients_in_every_piece():
    weight, offset, g = _parts(4)

    def f(z):
        joined = torch.tanh(torch.cat([z["a"], z["b"]], dim=1) @ weight.T + offset)
        return {"a": joined[:, :1], "b": joined[:, 1:]}

    zero = torch.zeros(2, 3, dtype=torch.float64)
    solution = solve(f, {"a": zero[:, :1], "b": zero[:, 1:]}, rtol=1e-10, gradient="one-step")
    (torch.cat([solution.z["a"], solution.z["b"]], dim=1) * g).sum().backward()
    whole = offset.grad.clone()
    offset.grad = None
    plain = solve(lambda z: torch.tanh(z @ weight.T + offset), zero, rtol=1e-10, gradient="one-step")
    (plain.z * g).sum().backward()
    assert torch.allclose(whole, offset.grad, rtol=1e-13)


def test_without_gradients_nothing_is_attached():
    weight, offset, _ = _parts(5)
    with torch.no_grad():
        solution = solve(
            lambda z: torch.tanh(z @ weight.T + offset), torch.zeros(2, 3, dtype=torch.float64), gradient="one-step"
        )
    assert not solution.z.requires_grad


def test_the_gradient_does_not_depend_on_the_solver():
    gradients = []
    for solver in (Picard(), "anderson", "broyden"):
        weight, offset, g = _parts(6)
        solution = solve(
            lambda z, w=weight, b=offset: torch.tanh(z @ w.T + b),
            torch.zeros(2, 3, dtype=torch.float64),
            solver=solver,
            rtol=1e-12,
            gradient="one-step",
        )
        (solution.z * g).sum().backward()
        gradients.append(weight.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9)
    assert torch.allclose(gradients[0], gradients[2], rtol=1e-9)
