"""Preconditioners made of the derivatives of the steps: quasi-DEER and DEER."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from draws import examples
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.capabilities import HasJacobians, HasSlopes, step_jacobians, step_slopes
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.problem import ChainProblem
from fixedpoint.chains.recurrence.linear import Derivatives
from fixedpoint.core.status import Status
from fixedpoint.testing.chains import CountedChain, linear_chain, trajectory, wave_chain

KINDS = ("diagonal", "jacobian")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class GatedChain(Chain, HasSlopes, HasJacobians):
    """``x' = tanh(gain W_i x + b_row) * sigmoid(x)``, on states of shape ``(2, 2)``, with derivatives by autograd."""

    def __init__(self, length: int, seed: int, gain: float = 1.0, rows: int = 4) -> None:
        self.length = length
        self.weight = gain * draw(seed, length, 4, 4)
        self.bias = draw(seed + 1, rows, 4)

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        mixed = (self.weight[index] * x.flatten(1).unsqueeze(1)).sum(-1)
        return torch.tanh(mixed + self.bias[row]).view_as(x) * torch.sigmoid(x)

    def slopes(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return step_slopes(self.step, x, index, row)

    def jacobians(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return step_jacobians(self.step, x, index, row)


def test_jacobians_and_slopes_are_those_of_autograd() -> None:
    chain = GatedChain(5, seed=0)
    assert isinstance(chain, HasJacobians)
    assert isinstance(chain, HasSlopes)
    x, index, row = draw(2, 7, 2, 2), torch.tensor([0, 4, 1, 1, 2, 3, 0]), torch.tensor([0, 1, 2, 3, 3, 2, 1])
    found, slopes = chain.jacobians(x, index, row), chain.slopes(x, index, row)
    for p in range(7):
        wanted = torch.autograd.functional.jacobian(
            lambda s, p=p: chain.step(s.unsqueeze(0), index[p : p + 1], row[p : p + 1])[0], x[p]
        ).reshape(4, 4)
        torch.testing.assert_close(found[p], wanted, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(slopes[p].flatten(), wanted.diagonal(), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("max_batch", [None, 3])
def test_the_derivatives_of_a_problem_are_blocks_of_its_jacobian(max_batch: int | None) -> None:
    problem = ChainProblem(GatedChain(4, seed=3), draw(5, 2, 2, 2), max_batch=max_batch)
    z = draw(6, 2, 16)
    whole = torch.autograd.functional.jacobian(problem, z)
    index, row = torch.tensor([3, 1, 2, 1, 1]), torch.tensor([0, 1, 1, 0, 1])
    x = z.view(2, 4, 2, 2)[row, index - 1]
    found = problem.derivatives(x, index, row, full_jacobian=True)
    diagonals = problem.derivatives(x, index, row, full_jacobian=False)
    assert torch.equal(found.diagonal(dim1=1, dim2=2), diagonals)
    for block, i, b in zip(found, index.tolist(), row.tolist(), strict=True):
        of_whole = whole[b, 4 * i : 4 * i + 4, b, 4 * i - 4 : 4 * i]
        torch.testing.assert_close(block, of_whole, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_an_affine_chain_takes_one_sweep(kind: str) -> None:
    """Newton's method solves what is linear at once; that of a scalar slope is its own diagonal."""
    problem = ChainProblem(linear_chain(30, seed=1), draw(2, 4, 3))
    solution = fixedpoint.solve(problem, solver=fixedpoint.ChainSolver(preconditioner=kind), rtol=1e-12)
    assert solution.counts.rounds == 2
    torch.testing.assert_close(solution.z, trajectory(problem.chain, problem.x0), rtol=1e-12, atol=1e-12)


def test_newton_doubles_the_digits() -> None:
    problem = ChainProblem(wave_chain(40, seed=5), draw(1, 4, 3))
    exact = trajectory(problem.chain, problem.x0)
    solver, errors = fixedpoint.ChainSolver(preconditioner="jacobian", slack=0.0), []
    while not errors or errors[-1] > 1e-13:
        states = fixedpoint.solve(problem, solver=solver, rtol=0.0, max_rounds=len(errors) + 2).z
        errors.append(float((states - exact).abs().amax()))
    small = [(e, following) for e, following in pairwise(errors) if 1e-7 < e < 0.1]
    assert small
    assert all(following < 3 * e**2 for e, following in small)
    assert len(errors) <= 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accelerator", ["picard", "anderson", "broyden"])
@examples(3, 6)
@given(length=st.integers(1, 30), gain=st.floats(0.1, 8.0), seed=st.integers(0, 10**6))
def test_equals_the_sequential_chain_however_wild(
    kind: str, accelerator: str, length: int, gain: float, seed: int
) -> None:
    problem = ChainProblem(GatedChain(length, seed, gain), draw(seed, 2, 2, 2))
    exact = trajectory(problem.chain, problem.x0)
    spec = {"name": "chain", "preconditioner": kind, "accelerator": accelerator}
    solution = fixedpoint.solve(problem, solver=spec, rtol=1e-13)
    assert solution.status == (Status.CONVERGED,) * 2
    assert solution.counts.rounds <= length
    assert fixedpoint.solve(problem, solver=spec, rtol=0.0).counts.rounds <= length
    torch.testing.assert_close(solution.z[:, -1], exact[:, -1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_counted_step_by_step(kind: str) -> None:
    chain = CountedChain(wave_chain(20, seed=5))
    problem = ChainProblem(chain, draw(1, 4, 3), max_batch=7)
    solution = fixedpoint.solve(problem, solver=fixedpoint.ChainSolver(preconditioner=kind, slack=0.0), rtol=1e-6)
    for row in range(4):
        # One evaluation more than derivatives: at the states that are found good enough no derivative is taken.
        assert solution.evaluations[row] == sum(20 - k for k in range(solution.rounds[row]))
        assert solution.counts.products[row] == sum(20 - k for k in range(solution.rounds[row] - 1))
    assert chain.tally.calls == solution.counts.calls
    assert sum(chain.tally.rows.values()) == solution.counts.computed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_a_derivative_that_is_not_finite_hands_nothing_on(kind: str, fault: float) -> None:
    class Kinked(GatedChain):
        def jacobians(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            return super().jacobians(x, index, row).masked_fill((index == 6).view(-1, 1, 1), fault)

        def slopes(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
            return super().slopes(x, index, row).masked_fill((index == 6).view(-1, 1, 1), fault)

    problem = ChainProblem(Kinked(12, seed=0), draw(1, 3, 2, 2))
    solution = fixedpoint.solve(problem, solver=fixedpoint.ChainSolver(preconditioner=kind), rtol=1e-12)
    assert solution.converged.all()
    torch.testing.assert_close(solution.z, trajectory(problem.chain, problem.x0), rtol=1e-10, atol=1e-10)


def test_a_sweep_that_overflows_leaves_plain_steps() -> None:
    slopes = torch.full((1, 8, 2), 1e200, dtype=torch.float64)
    defects = draw(0, 1, 10, 2)
    swept = Derivatives(slopes).sweep(defects)
    assert torch.equal(swept[:, :3], defects[:, :3])
    assert swept[:, 3].abs().amin() > 1e190  # one step on, it is still finite
    assert torch.equal(swept[:, 4:], defects[:, 4:])


class Plain(Chain):
    length = 3

    def step(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return x / 2


class Misshapen(Plain, HasSlopes, HasJacobians):
    def slopes(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x))

    def jacobians(self, x: torch.Tensor, index: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 3, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "chain", "sentence"),
    [
        (
            "diagonal",
            Plain(),
            "requires a chain with a method slopes.x, index, row., and Plain has none; write it with",
        ),
        ("jacobian", Plain(), "requires a chain with a method jacobians"),
        ("diagonal", Misshapen(), r"slopes must return shape \(6, 3\), torch.float32, got \(6,\)"),
        ("jacobian", Misshapen(), r"jacobians must return shape \(6, 3, 3\), torch.float32, got .* torch.float64"),
    ],
)
def test_bad_input_is_a_sentence(kind: str, chain: Chain, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        fixedpoint.solve(ChainProblem(chain, torch.ones(2, 3)), solver=fixedpoint.ChainSolver(preconditioner=kind))
