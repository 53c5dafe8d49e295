"""Recurrent chains: torch's own networks, all states at once, and the derivatives of their cells."""

from __future__ import annotations

import pytest
import torch

import fixedpoint
from fixedpoint.chains.capabilities import step_jacobians, step_slopes
from fixedpoint_sequences import RecurrentChain, recurrent_problem
from fixedpoint_sequences.recurrent_task import RecurrentNetwork

NEWTON = fixedpoint.ChainSolver(preconditioner="jacobian")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(kind: type[torch.nn.RNNBase], seed: int, **options: object) -> torch.nn.RNNBase:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(3, 5, batch_first=True, dtype=torch.float64, **options).requires_grad_(False)


def cell_of(net: torch.nn.RNNBase) -> torch.nn.Module:
    """The cell with the weights of a network of one layer."""
    if isinstance(net, torch.nn.GRU):
        cell: torch.nn.RNNCellBase = torch.nn.GRUCell(3, 5, bias=net.bias, dtype=torch.float64)
    else:
        cell = torch.nn.RNNCell(3, 5, bias=net.bias, nonlinearity=net.nonlinearity, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in net.state_dict().items()})
    return cell.requires_grad_(False)


NETWORKS = {
    "tanh": (torch.nn.RNN, {}),
    "relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    "gru": (torch.nn.GRU, {}),
    "gru without bias": (torch.nn.GRU, {"bias": False}),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("preconditioner", ["serial", "zero", "identity", "diagonal", "jacobian"])
def test_is_the_network_of_torch(name: str, preconditioner: str) -> None:
    kind, options = NETWORKS[name]
    net = network(kind, seed=1, **options)
    inputs, x0 = draw(2, 4, 30, 3), draw(3, 4, 5)
    wanted, last = net(inputs, x0.unsqueeze(0))
    solver = (
        fixedpoint.Serial() if preconditioner == "serial" else fixedpoint.ChainSolver(preconditioner=preconditioner)
    )
    solution = fixedpoint.solve(recurrent_problem(cell_of(net), inputs, x0), solver=solver, rtol=1e-13)
    assert solution.converged.all()
    torch.testing.assert_close(solution.z, wanted, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(solution.z[:, -1], last[0], rtol=1e-11, atol=1e-11)


def test_starts_at_zero_like_torch() -> None:
    net, inputs = network(torch.nn.GRU, seed=4), draw(5, 2, 12, 3)
    solution = fixedpoint.solve(recurrent_problem(cell_of(net), inputs), solver=NEWTON, rtol=1e-12)
    torch.testing.assert_close(solution.z, net(inputs)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives_in_closed_form_are_those_of_autograd(name: str) -> None:
    kind, options = NETWORKS[name]
    chain = RecurrentChain(cell_of(network(kind, seed=6, **options)), draw(7, 3, 9, 3))
    x, index, row = draw(8, 6, 5), torch.tensor([0, 8, 3, 3, 5, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    found, slopes = chain.jacobians(x, index, row), chain.slopes(x, index, row)
    torch.testing.assert_close(found, step_jacobians(chain.step, x, index, row), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(slopes, step_slopes(chain.step, x, index, row), rtol=1e-13, atol=1e-14)
    for p in range(6):
        wanted = torch.autograd.functional.jacobian(
            lambda s, p=p: chain.step(s.unsqueeze(0), index[p : p + 1], row[p : p + 1])[0], x[p]
        )
        torch.testing.assert_close(found[p], wanted, rtol=1e-13, atol=1e-14)


def test_any_cell_of_yours() -> None:
    """A subclass may compute anything else, so it is not taken for the cell it derives from."""

    class Leaky(torch.nn.RNNCell):
        def forward(self, u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return 0.7 * x + 0.3 * super().forward(u, x)

    cell = Leaky(3, 5, dtype=torch.float64)
    cell.load_state_dict(cell_of(network(torch.nn.RNN, seed=9)).state_dict())
    inputs = draw(10, 2, 40, 3)
    x, states = torch.zeros(2, 5, dtype=torch.float64), []
    with torch.no_grad():
        for u in inputs.unbind(1):
            x = cell(u, x)
            states.append(x)
    for preconditioner in ("diagonal", "jacobian"):
        solver = fixedpoint.ChainSolver(preconditioner=preconditioner)
        solution = fixedpoint.solve(recurrent_problem(cell, inputs), solver=solver, rtol=1e-12)
        torch.testing.assert_close(solution.z, torch.stack(states, 1), rtol=1e-9, atol=1e-11)
    assert solution.counts.rounds <= 12


@pytest.mark.parametrize("radius", [0.9, 1.0])
def test_newton_hardly_feels_the_length(radius: float) -> None:
    """Rounds to 1e-6: plain ones as long as the network remembers, Newton's a handful, up to 4096 steps."""
    rounds = {}
    for length in (64, 512, 4096):
        problem = RecurrentNetwork(length=length, spectral_radius=radius, size=8, batch=1).problem(0)
        serial = fixedpoint.solve(problem, solver="serial").z
        for kind in ("zero", "jacobian"):
            if (kind, length) == ("zero", 4096):
                continue
            solution = fixedpoint.solve(problem, solver=fixedpoint.ChainSolver(preconditioner=kind), rtol=1e-6)
            rounds[kind, length] = solution.counts.rounds
            assert (solution.z - serial).norm(dim=2).amax() <= 1e-5 * serial.norm(dim=2).amax()
    assert max(rounds["jacobian", length] for length in (64, 512, 4096)) <= 15
    assert rounds["zero", 512] > 5 * rounds["jacobian", 512]


@pytest.mark.parametrize("cell", ["tanh", "gru"])
@pytest.mark.parametrize("radius", [0.0, 0.9, 1.0])
def test_the_recurrent_weights_have_the_radius_asked_for(cell: str, radius: float) -> None:
    chain = RecurrentNetwork(cell=cell, spectral_radius=radius, length=3).problem(5).chain
    for gate in chain.cell.weight_hh.split(16):
        assert float(torch.linalg.eigvals(gate).abs().amax()) == pytest.approx(radius, abs=1e-12)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: RecurrentChain("gru", draw(0, 2, 3, 4)), "cell must be a function or module cell.u, x., got str"),
        (lambda: RecurrentChain(torch.tanh, draw(0, 2, 3)), r"shape \(B, N, features\), none empty, got \(2, 3\)"),
        (lambda: RecurrentChain(torch.tanh, torch.zeros(2, 0, 3)), r"none empty, got \(2, 0, 3\)"),
        (lambda: RecurrentChain(torch.tanh, torch.zeros(2, 3, 3, dtype=torch.int64)), "floating-point dtype, got"),
        (lambda: recurrent_problem(torch.add, draw(0, 2, 3, 4)), "without a hidden_size requires x0 of shape"),
        (
            lambda: recurrent_problem(torch.add, draw(0, 2, 3, 4), draw(0, 3, 4)),
            r"x0 must have shape \(2, d\), torch.float64 on cpu to go with the inputs, got \(3, 4\)",
        ),
        (
            lambda: recurrent_problem(torch.add, draw(0, 2, 3, 4), torch.zeros(2, 4)),
            r"to go with the inputs, got \(2, 4\), torch.float32 on cpu",
        ),
        (
            lambda: fixedpoint.solve(recurrent_problem(lambda _, x: x.sum(1), draw(0, 2, 3, 4), draw(0, 2, 4))),
            r"a step must return shape \(2, 4\)",
        ),
        (lambda: RecurrentNetwork(cell="lstm"), "cell must be one of 'tanh', 'gru'"),
        (lambda: RecurrentNetwork(spectral_radius=-1.0), "spectral_radius must be at least 0"),
    ],
)
def test_bad_input_is_a_sentence(act: object, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        act()
