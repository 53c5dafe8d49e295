"""Backward passes of a layer, again and of several forwards at once, against autograd through four hundred calls."""

from collections.abc import Callable

import pytest
import torch
from layer_cells import TanhCell, draw
from torch import nn

from fixedpoint import Termination
from fixedpoint.layers import Equilibrium, EquilibriumLayer, spectral_normalized, weight_normalized

X = draw(7, 4, 6)
# Rows that are done at different times, so that they leave the adjoint solve one after the other.
GAIN = torch.tensor([[0.0], [0.3], [0.9], [1.0]], dtype=torch.float64)


class Cell(TanhCell):
    def forward(self, z: torch.Tensor, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return torch.tanh(gain * self.linear(self.dropout(z)) + x)


CELLS: dict[str, Callable[[], nn.Module]] = {
    "plain": Cell,
    "dropout": lambda: Cell(dropout=0.4),
    "weight normalised": lambda: weight_normalized(Cell()),
    "spectrally normalised": lambda: spectral_normalized(Cell(gain=2.0), bound=0.8),
}


def layer_of(name: str, solver: str) -> EquilibriumLayer:
    torch.manual_seed(4)
    rule = Termination(rtol=1e-12, max_rounds=400)
    estimator = {"name": "implicit", "solver": solver, "termination": {"rtol": 1e-12}}
    return EquilibriumLayer(CELLS[name](), solver="anderson", gradient=estimator, training=rule)


def unrolled(found: Equilibrium) -> torch.Tensor:
    z = torch.zeros_like(X)
    for _ in range(400):
        z = found.f(z)
    return z


def parameters(layer: EquilibriumLayer) -> list[nn.Parameter]:
    return [each for each in layer.parameters() if each.requires_grad]


def assert_equal(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert float(other.norm()) > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("solver", ["krylov", "picard"])
def test_a_backward_pass_is_made_again_with_any_cotangent(name: str, solver: str) -> None:
    layer = layer_of(name, solver)
    found = layer.solve(X, GAIN)
    z, weights = unrolled(found), parameters(layer)
    torch.testing.assert_close(found.z, z, rtol=1e-9, atol=1e-9)
    for seed in (1, 2, 1):
        g = draw(seed, 4, 6)
        given = torch.autograd.grad(found.z, weights, g, retain_graph=True)
        assert_equal(given, torch.autograd.grad(z, weights, g, retain_graph=True))


@pytest.mark.parametrize("name", CELLS)
def test_what_two_backward_passes_leave_is_the_sum(name: str) -> None:
    layer = layer_of(name, "krylov")
    found = layer.solve(X, GAIN)
    loss = found.z.square().sum()
    for _ in range(2):
        loss.backward(retain_graph=True)
    weights = parameters(layer)
    wanted = torch.autograd.grad(unrolled(found).square().sum(), weights)
    assert_equal(tuple(each.grad for each in weights), tuple(2 * each for each in wanted))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("together", [True, False])
def test_several_forwards_have_a_gradient_each(name: str, together: bool) -> None:
    """In one backward pass, and in one each, the last forward first."""
    layer = layer_of(name, "krylov")
    solved = [layer.solve(shift + X, GAIN) for shift in (0.0, 0.5, -0.3)]
    losses = [found.z.pow(power).sum() for power, found in enumerate(solved, start=1)]
    if together:
        sum(losses).backward(retain_graph=True)
    else:
        for loss in reversed(losses):
            loss.backward(retain_graph=True)  # the weights that a solve holds still are recorded once
    weights = parameters(layer)
    value = sum(unrolled(found).pow(power).sum() for power, found in enumerate(solved, start=1))
    assert_equal(tuple(each.grad for each in weights), torch.autograd.grad(value, weights))


def test_one_forward_through_another() -> None:
    """A layer applied to its own output: the chain rule, with one weight in both."""
    layer = layer_of("plain", "krylov")
    first = layer.solve(X, GAIN)
    second = layer.solve(first.z, GAIN)
    weights = parameters(layer)
    given = torch.autograd.grad(second.z.square().sum(), weights)
    z, inner = torch.zeros_like(X), unrolled(first)
    for _ in range(400):
        z = layer.cell(z, inner, GAIN)
    assert_equal(given, torch.autograd.grad(z.square().sum(), weights))
