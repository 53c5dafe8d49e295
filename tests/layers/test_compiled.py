"""Under torch.compile: a layer within a compiled model, a compiled cell, a solve within a compiled function."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from layer_cells import TanhCell, draw
from torch import nn

import fixedpoint
from fixedpoint import Termination
from fixedpoint.layers import EquilibriumLayer

dynamo: Any = pytest.importorskip("torch._dynamo")
# The compiler's own: it looks at what it is given in every way, and finds the very first Python 3.13 slow.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"),
]
TIGHT = Termination(rtol=1e-10, max_rounds=300)
X = draw(0, 5, 6) * torch.logspace(-3, 0.5, 5, dtype=torch.float64).unsqueeze(1)


class Plain(nn.Linear):
    """It counts nothing: a number that is another one at every call is compiled anew at every call."""

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.tanh(0.5 * super().forward(z) + x)


class Model(nn.Module):
    def __init__(self, layer: EquilibriumLayer) -> None:
        super().__init__()
        self.stem, self.layer, self.head = plain(6), layer, plain(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.head(self.layer(torch.relu(self.stem(x))))
        return value


def plain(size: int) -> nn.Linear:
    return nn.Linear(6, size, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    dynamo.reset()
    dynamo.utils.counters.clear()
    yield
    dynamo.reset()


def gradients(model: nn.Module, value: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    value.square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("gradient", [None, "unrolled", "one-step"])
def test_a_compiled_model_with_a_layer_is_the_model(gradient: Any) -> None:
    layer = EquilibriumLayer(TanhCell(), gradient=gradient, training=TIGHT)
    model = Model(layer)
    value = model(X)
    wanted = gradients(model, value)
    compiled = torch.compile(model, backend="aot_eager")
    again = compiled(X)
    torch.testing.assert_close(again, value, rtol=1e-9, atol=1e-11)
    for one, other in zip(gradients(model, again), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
    assert len(wanted) == 6
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 2  # what is before the layer, and what is behind it
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), model(X), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("gradient", [None, "neumann", "one-step"])
def test_a_compiled_cell_is_compiled_once_whatever_rows_are_done(gradient: Any) -> None:
    cell = Plain(6, 6, dtype=torch.float64)
    loose = EquilibriumLayer(cell, gradient=gradient, training=TIGHT)
    layer = EquilibriumLayer(torch.compile(cell, backend="aot_eager"), gradient=gradient, training=TIGHT)
    for shift in range(3):
        x = X.roll(shift, 0) * (1 + shift)
        found = layer.solve(x)
        assert len(set(found.solution.rounds.tolist())) > 1
        given = gradients(cell, found.z)
        for one, other in zip(given, gradients(cell, loose(x)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    # One for the solve, and one for an evaluation that is recorded as it is.
    assert dynamo.utils.counters["stats"]["unique_graphs"] == 1 + (gradient == "one-step")


def test_a_solve_within_a_compiled_function() -> None:
    weight = (0.3 * draw(1, 6, 6)).requires_grad_()

    def loss(x: torch.Tensor) -> torch.Tensor:
        shift = 2 * x
        solution = fixedpoint.solve(
            lambda z: torch.tanh(z @ weight + shift), torch.zeros_like(x), gradient="implicit", rtol=1e-10
        )
        return solution.z.square().sum() * 3

    wanted = torch.autograd.grad(loss(X), weight)[0]
    given = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(X), weight)[0]
    torch.testing.assert_close(given, wanted, rtol=1e-8, atol=1e-10)


def test_the_compiler_is_not_loaded_for_a_solve() -> None:
    import subprocess

    program = (
        "import sys, torch, fixedpoint\n"
        "fixedpoint.solve(torch.cos, torch.ones(2, 2), gradient='implicit')\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
