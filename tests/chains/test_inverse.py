"""Chains inverted jointly: the start of what a chain has made, on mixtures with exact scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ddim_cases import Case, cases
from draws import examples
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

import fixedpoint as fp
from fixedpoint.chains.capabilities import HasCoefficients
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.inversion.problem import InverseProblem
from fixedpoint.chains.slope.preconditioner import Banded, Coefficient, Diagonal, Gaussian, Identity, Zero


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inverted(case: Case, preconditioner: Any, solver: Any = "anderson") -> tuple[Tensor, fp.Solution, InverseProblem]:
    problem = case.problem()
    end = fp.solve(problem, solver="serial").z[:, -1]
    inverse = InverseProblem(problem.chain, end, preconditioner=preconditioner, max_batch=problem.max_batch)
    return problem.x0, fp.solve(inverse, solver=solver, rtol=1e-11, max_rounds=400), inverse


@examples(7, 15)
@given(
    case=cases(steps=st.sampled_from([10, 50, 100]), clip=st.just(False)),
    preconditioner=st.sampled_from([Gaussian(), Identity()]),
)
def test_the_noise_comes_back(case: Case, preconditioner: Any) -> None:
    """Whatever schedule, spacing and prediction; with noise that is known, as long as it does not drown the start."""
    case = replace(case, eta=0.3 * case.eta)
    if case.schedule.rescale_betas_zero_snr:  # the noisiest state holds nothing of the image, nor the image of it
        case = replace(case, schedule=replace(case.schedule, rescale_betas_zero_snr=False))
    x_T, solution, inverse = inverted(case, preconditioner)
    assert solution.converged.all()
    error = (solution.z[:, 0] - x_T).flatten(1).norm(dim=1) / x_T.flatten(1).norm(dim=1)
    assert float(error.max()) <= 1e-8
    assert float(inverse.step_errors(solution.state, solution.fstate).max()) <= 1e-9


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden", "newton-krylov", "auto"])
def test_any_solver_inverts_a_chain_whose_steps_contract(solver: str) -> None:
    chain = Network(draw(1, 6, 6), draw(2, 3, 6))
    x_0 = draw(3, 3, 6)
    end = serially(chain, x_0)
    solution = fp.solve(InverseProblem(chain, end), solver=solver, rtol=1e-12)
    assert solution.converged.all()
    torch.testing.assert_close(solution.z[:, 0], x_0, rtol=1e-9, atol=1e-9)


class Network(Chain, HasCoefficients):
    """``1.1 x + tanh(W x + c_row) / 5`` with ``||W|| = 1``."""

    length = 12

    def __init__(self, weight: Tensor, conditioning: Tensor) -> None:
        self.weight = weight / torch.linalg.matrix_norm(weight, 2)
        self.conditioning = conditioning

    def coefficients(self) -> Float[Tensor, " N"]:
        return torch.full((self.length,), 1.1, dtype=torch.float64)

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        mixed = (self.weight * x.unsqueeze(1)).sum(-1)
        return 1.1 * x + 0.2 * torch.tanh(mixed + self.conditioning[row])


def serially(chain: Chain, x: Tensor) -> Tensor:
    rows = torch.arange(len(x))
    for i in range(chain.length):
        x = chain.step(x, torch.full_like(rows, i), rows)
    return x


@pytest.mark.parametrize("preconditioner", [Identity(), Coefficient()], ids=str)
def test_defects_and_errors_are_those_of_the_steps(preconditioner: Any) -> None:
    chain, z = Network(draw(1, 6, 6), draw(2, 3, 6)), draw(4, 3, 12 * 6)
    end = draw(5, 3, 6)
    inverse = InverseProblem(chain, end, preconditioner=preconditioner)
    fz = inverse(z)
    states = torch.cat([z.view(3, 12, 6), end.unsqueeze(1)], dim=1)
    wanted = torch.stack(
        [chain.step(states[:, i], torch.full((3,), i), torch.arange(3)) - states[:, i + 1] for i in range(12)], dim=1
    )
    torch.testing.assert_close(inverse.defects(z, fz), wanted, rtol=1e-9, atol=1e-9)
    errors = wanted.norm(dim=2) / states[:, 1:].norm(dim=2)
    torch.testing.assert_close(inverse.step_errors(z, fz), errors, rtol=1e-9, atol=1e-9)
    # Solving every step exactly for a linear chain is one round.
    linear = fp.solve(InverseProblem(Linear(), end, preconditioner=Coefficient()), solver="picard", rtol=1e-12)
    assert linear.counts.rounds == 2
    torch.testing.assert_close(linear.z[:, 0], end / 1.1**12)


class Linear(Network):
    def __init__(self) -> None:
        pass

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        return 1.1 * x


def test_rows_are_inverted_as_if_they_were_alone() -> None:
    chain = Network(draw(1, 6, 6), draw(2, 5, 6))
    end = draw(6, 5, 6) * torch.tensor([0.1, 1.0, 3.0, 10.0, 30.0], dtype=torch.float64).unsqueeze(1)
    inverse = InverseProblem(chain, end)
    together = fp.solve(inverse, solver="anderson", rtol=1e-11)
    for row in range(5):
        alone = fp.solve(inverse.take(torch.tensor([row])), solver="anderson", rtol=1e-11)
        assert torch.equal(alone.state[0], together.state[row])
        assert alone.evaluations[0] == together.evaluations[row]
    assert together.evaluations.max() == 12 * together.rounds.max()


def test_its_gradient_is_that_of_the_implicit_function_theorem() -> None:
    """By the end: the inverse of the chain's own Jacobian."""
    chain = Network(draw(1, 6, 6), draw(2, 1, 6))
    x_0 = draw(3, 1, 6)
    end = serially(chain, x_0).requires_grad_()
    estimator = fp.Implicit(termination=fp.Termination(rtol=1e-12))
    solution = fp.solve(InverseProblem(chain, end), solver="anderson", gradient=estimator, rtol=1e-12)
    forward = torch.autograd.functional.jacobian(lambda x: serially(chain, x), x_0)[0, :, 0]
    g = draw(7, 6)
    (found,) = torch.autograd.grad(solution.z[0, 0], end, g)
    torch.testing.assert_close(found[0], torch.linalg.solve(forward.mT, g), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("preconditioner", "sentence"),
    [
        (Zero(), "divides by the slopes of Zero(), which must be finite and not zero"),
        (Diagonal(), "must know one slope a step beforehand, got Diagonal()"),
        (Banded(order=2), "must know one slope a step beforehand, got Banded(order=2)"),
    ],
    ids=str,
)
def test_slopes_that_cannot_be_divided_by_are_refused(preconditioner: Any, sentence: str) -> None:
    chain = Network(draw(1, 6, 6), draw(2, 3, 6))
    with pytest.raises((TypeError, ValueError)) as raised:
        InverseProblem(chain, draw(3, 3, 6), preconditioner=preconditioner)
    assert sentence in str(raised.value)
