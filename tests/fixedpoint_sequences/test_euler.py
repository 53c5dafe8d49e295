"""Euler chains: against plain loops, and the linear field against its closed form."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint.chains.coarse import HasExtension
from fixedpoint_sequences import EulerChain, euler_problem
from fixedpoint_sequences.euler_task import EulerODE
from fixedpoint_sequences.fields import Decay, Field, Lorenz, LotkaVolterra, VanDerPol

FIELDS = (Lorenz(), VanDerPol(), LotkaVolterra(), Decay(size=3))
SOLVERS = ["serial", *(fixedpoint.ChainSolver(preconditioner=k) for k in ("zero", "identity", "diagonal", "jacobian"))]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pendulum(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A driven pendulum: states of shape (2, 1), and a field that depends on time."""
    angle, speed = x.unbind(1)
    return torch.stack([speed, -torch.sin(angle) - 0.1 * speed + torch.cos(2 * t).unsqueeze(1)], dim=1)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_equals_a_plain_loop(solver: object) -> None:
    """On an uneven grid, forward and backward in time."""
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), (0.05 * draw(1, 40).abs() + 0.01).cumsum(0)])
    x0 = draw(2, 3, 2, 1)
    for times in (grid, grid.flip(0)):
        x, states = x0, []
        for t, following in pairwise(times):
            x = x + (following - t) * pendulum(x, t.expand(3))
            states.append(x)
        solution = fixedpoint.solve(euler_problem(pendulum, times, x0), solver=solver, rtol=1e-13)
        assert solution.converged.all()
        torch.testing.assert_close(solution.z, torch.stack(states, dim=1), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("length", [1, 40, 400])
def test_the_linear_field_has_a_closed_form(solver: object, length: int) -> None:
    """``(1 - h lambda)^N x_0``, also where ``h lambda > 2`` and the solve blows up."""
    field = Decay(size=5, slowest=0.1, fastest=60.0)
    task = EulerODE(field=field, length=length, duration=2.0, batch=3)
    problem = task.problem(3)
    solution = fixedpoint.solve(problem, solver=solver, rtol=1e-13)
    powers = (1 - 2.0 / length * field.rates) ** torch.arange(1, length + 1).unsqueeze(1)
    wanted = powers * problem.x0.unsqueeze(1)
    assert solution.converged.all()
    error = (solution.z - wanted).norm(dim=2) / wanted.norm(dim=2).amax(1, keepdim=True)
    assert error.amax() <= 1e-11
    if isinstance(solver, fixedpoint.ChainSolver) and solver.preconditioner.variant in ("diagonal", "jacobian"):
        assert solution.counts.rounds == min(length, 2)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.variant)
def test_derivatives_of_a_step(field: Field) -> None:
    chain = EulerChain(field, torch.linspace(0.0, 1.0, 11, dtype=torch.float64))
    d = len(field.centre)
    x, index, row = field.centre + draw(4, 5, d), torch.tensor([0, 9, 4, 4, 2]), torch.zeros(5, dtype=torch.int64)
    jacobians = chain.jacobians(x, index, row)
    for p in range(5):
        inner = torch.autograd.functional.jacobian(lambda s: field(s.unsqueeze(0), torch.zeros(1))[0], x[p])
        wanted = torch.eye(d, dtype=torch.float64) + 0.1 * inner
        torch.testing.assert_close(jacobians[p], wanted, rtol=1e-13, atol=1e-13)
    assert torch.equal(chain.slopes(x, index, row), jacobians.diagonal(dim1=1, dim2=2))


def test_the_fields_are_what_they_are_called() -> None:
    """Where each stands still, and what it keeps."""
    still = {
        Lorenz(): [(72.0**0.5, 72.0**0.5, 27.0), (-(72.0**0.5), -(72.0**0.5), 27.0), (0.0, 0.0, 0.0)],
        VanDerPol(mu=3.0): [(0.0, 0.0)],
        LotkaVolterra(): [(3.0, 1.5), (0.0, 0.0)],
        Decay(size=2): [(0.0, 0.0)],
    }
    for field, points in still.items():
        x = torch.tensor(points, dtype=torch.float64)
        torch.testing.assert_close(field(x, torch.zeros(len(x))), torch.zeros_like(x), rtol=0.0, atol=1e-12)
    x = draw(5, 6, 2).abs() + 0.1
    # d/dt (gain prey - death log prey + predation predators - growth log predators) = 0
    gradient = torch.stack([1.0 - 3.0 / x[:, 0], 1.0 - 1.5 / x[:, 1]], dim=1)
    assert (gradient * LotkaVolterra()(x, torch.zeros(6))).sum(1).abs().amax() < 1e-12
    rates = Decay(size=4, slowest=0.1, fastest=100.0).rates
    torch.testing.assert_close(rates, torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=torch.float64))
    trace = torch.autograd.functional.jacobian(lambda s: Lorenz()(s.unsqueeze(0), torch.zeros(1))[0], draw(6, 3))
    assert float(trace.trace()) == pytest.approx(-(10 + 1 + 8 / 3))


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.variant)
@pytest.mark.parametrize("preconditioner", ["zero", "identity", "diagonal"])
def test_a_row_alone_has_the_same_bits(field: Field, preconditioner: str) -> None:
    problem = EulerODE(field=field, length=30, batch=4).problem(7)
    solver = fixedpoint.ChainSolver(preconditioner=preconditioner)
    together = fixedpoint.solve(problem, solver=solver, rtol=1e-9)
    for row in range(4):
        alone = fixedpoint.solve(problem.take(torch.tensor([row])), solver=solver, rtol=1e-9)
        assert torch.equal(alone.z[0], together.z[row])
        assert alone.rounds[0] == together.rounds[row]


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: EulerChain("lorenz", torch.arange(3.0)), "field must be a function field.x, t., got str"),
        (lambda: EulerChain(pendulum, torch.zeros(1)), r"times must be finite, of shape \(N \+ 1,\)"),
        (lambda: EulerChain(pendulum, torch.zeros(2, 2)), "times must be finite"),
        (lambda: EulerChain(pendulum, torch.tensor([0.0, torch.inf])), "times must be finite"),
        (
            lambda: fixedpoint.solve(euler_problem(lambda x, _: x.sum(1), torch.arange(4.0), torch.ones(2, 4))),
            "a field must return shape",
        ),
        (lambda: Decay(slowest=2.0, fastest=1.0), "fastest must be at least slowest = 2.0, got 1.0"),
        (lambda: EulerODE(duration=0.0), "duration must be greater than 0"),
        (lambda: EulerODE(field="lorentz"), "field must be .lorenz. or .van-der-pol. or"),
    ],
)
def test_bad_input_is_a_sentence(act: object, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        act()


@given(length=st.integers(1, 30), back=st.booleans(), seed=st.integers(0, 10**6))
def test_a_step_that_goes_on_is_a_longer_step(length: int, back: bool, seed: int) -> None:
    """From any state to any later one, on an uneven grid with steps of no length."""
    lengths = torch.where(draw(seed, length) > 1, 0.0, draw(seed, length).abs())
    times = (-lengths if back else lengths).cumsum(0)
    times = torch.cat([torch.zeros(1, dtype=torch.float64), times])
    chain = EulerChain(pendulum, times)
    index, target = torch.triu_indices(length, length)
    target = target + 1
    x = draw(seed + 1, len(index), 2, 1)
    row = torch.zeros_like(index)
    value = chain.step(x, index, row)
    reach = (times[target] - times[index]).view(-1, 1, 1)
    still = (times[index + 1] == times[index]).view(-1, 1, 1)
    wanted = torch.where(still, value, x + reach * pendulum(x, times[index]))
    found = chain.extend(x, value, index, target, row)
    assert isinstance(chain, HasExtension)
    # a velocity is known to the rounding of the states over the length of the step
    error = (found - wanted).abs()
    longer = torch.where(still, 1.0, reach / (times[index + 1] - times[index]).view(-1, 1, 1)).abs()
    assert (error <= 1e-14 * (1 + longer) * (1 + x.abs().amax() + value.abs().amax())).all()
    nearest = target == index + 1
    torch.testing.assert_close(found[nearest], value[nearest], rtol=1e-14, atol=1e-14)


def test_an_extension_of_another_dtype_is_a_sentence() -> None:
    chain = EulerChain(pendulum, torch.linspace(0, 1, 5))
    x, index = torch.ones(1, 2, 1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"value must have shape \(1, 2, 1\), torch.float32 like x, got .*float64"):
        chain.extend(x, x.double(), index, index + 1, index)
