import copy

import pytest
import torch
from layer_cells import TanhCell, draw
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from fixedpoint import Termination
from fixedpoint.layers import Bounded, EquilibriumLayer, spectral_normalized, weight_normalized

TIGHT = {"training": Termination(rtol=1e-12), "evaluation": Termination(rtol=1e-12)}
X = draw(7, 3, 6)
NORMALISATIONS = {
    "weight": weight_normalized,
    "spectral": lambda cell: spectral_normalized(cell, bound=0.7),
    "learned": lambda cell: spectral_normalized(cell, bound=0.9, learned=True),
}


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalised_cells_are_copied_averaged_converted_and_saved(name: str) -> None:
    layer = EquilibriumLayer(NORMALISATIONS[name](TanhCell()), **TIGHT)
    layer(X).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    layer.eval()
    wanted = layer(X)
    torch.testing.assert_close(copy.deepcopy(layer)(X), wanted, rtol=1e-10, atol=1e-10)
    averaged = AveragedModel(layer, use_buffers=True)
    averaged.update_parameters(layer)
    torch.testing.assert_close(averaged.eval()(X), wanted, rtol=1e-10, atol=1e-10)
    single = copy.deepcopy(layer).float()
    single.terminations["evaluation"] = Termination(rtol=1e-5)
    torch.testing.assert_close(single(X.float()).double(), wanted, rtol=1e-4, atol=1e-4)
    assert single.double()(X).dtype == torch.float64
    other = EquilibriumLayer(NORMALISATIONS[name](TanhCell(seed=9)), **TIGHT).eval()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(X), wanted, rtol=1e-10, atol=1e-10)


def test_the_power_iteration_goes_on_once_a_solve() -> None:
    """A spectrally normalised cell in training mode is one function in a solve, and another in the next one."""
    cell = spectral_normalized(TanhCell(gain=3.0), bound=0.9)
    layer = EquilibriumLayer(cell, **TIGHT)
    norm = cell.linear.parametrizations.weight[0]
    once = copy.deepcopy(cell)
    first = layer.solve(X)
    assert first.solution.converged.all()
    assert first.solution.counts.rounds > 5
    once.linear.weight  # noqa: B018 -- one power iteration, by reading it
    torch.testing.assert_close(norm._u, once.linear.parametrizations.weight[0]._u, rtol=0, atol=0)
    second = layer.solve(X)
    torch.testing.assert_close(first.f(first.z), first.z, rtol=1e-9, atol=1e-9)
    assert not torch.equal(first.z, second.z)


def test_the_gradient_of_a_normalised_cell_is_that_of_its_function() -> None:
    cell = spectral_normalized(TanhCell(gain=3.0), bound=0.9)
    layer = EquilibriumLayer(cell, gradient={"name": "implicit", "termination": {"rtol": 1e-12}}, **TIGHT)
    found = layer.solve(X)
    original = cell.linear.parametrizations.weight.original
    (given,) = torch.autograd.grad(found.z.square().sum(), original, retain_graph=True)
    z = torch.zeros_like(X)
    for _ in range(600):
        z = found.f(z)
    (wanted,) = torch.autograd.grad(z.square().sum(), original)
    torch.testing.assert_close(given, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("learned", [False, True])
def test_the_spectral_norm_is_the_bound(learned: bool) -> None:
    cell = spectral_normalized(TanhCell(gain=3.0), bound=0.7, learned=learned, power_iterations=50)
    for _ in range(5):
        weight = cell.linear.weight
    wanted = 0.95 * 0.7 if learned else 0.7
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(wanted, rel=1e-3)


def test_convolutions_are_normalised_by_their_kernels() -> None:
    conv = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU()).double()
    spectral_normalized(conv, bound=0.5, power_iterations=50)
    kernel = conv[0].weight
    assert torch.linalg.matrix_norm(kernel.flatten(1), 2).item() == pytest.approx(0.5, rel=1e-3)
    point = torch.zeros(1, 4, 8, 8, dtype=torch.float64)
    operator = torch.autograd.functional.jacobian(lambda x: conv[0](x).flatten(), point).flatten(1)
    assert torch.linalg.matrix_norm(operator, 2).item() <= 3 * 0.5


def test_what_cannot_be_normalised_is_told() -> None:
    with pytest.raises(ValueError, match="Tanh has no module to normalise"):
        weight_normalized(nn.Tanh())
    with pytest.raises(ValueError, match="has a parametrisation already"):
        spectral_normalized(weight_normalized(TanhCell()))
    with pytest.raises(ValueError, match="bound must be greater than 0, got 0"):
        spectral_normalized(TanhCell(), bound=0)
    chosen = weight_normalized(TanhCell(), of=lambda module: isinstance(module, nn.Linear))
    assert parametrize.is_parametrized(chosen.linear, "weight")


def test_an_error_in_the_cell_leaves_it_as_it_was() -> None:
    class Failing(TanhCell):
        def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            if self.calls == 3:
                raise RuntimeError("out of order")
            return super().forward(z, x)

    cell = weight_normalized(Failing())
    layer = EquilibriumLayer(cell, **TIGHT)
    with pytest.raises(RuntimeError, match="out of order"):
        layer(X)
    assert "forward" not in vars(cell.linear.parametrizations.weight)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_a_bound_is_positive(bound: float) -> None:
    with pytest.raises(ValueError, match="bound must be greater than 0"):
        Bounded(bound)
