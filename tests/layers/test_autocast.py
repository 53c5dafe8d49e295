"""Automatic mixed precision in and around a layer: the cell computes in bfloat16, forward and backward, and no more."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from fixedpoint import Termination
from fixedpoint.layers import EquilibriumLayer, jacobian_penalty, spectral_normalized, weight_normalized

EPS = torch.finfo(torch.bfloat16).eps
ROUGH = Termination(rtol=1e-2)
PICARD = {"name": "implicit", "solver": "picard", "termination": {"rtol": 1e-2}}


class Cell(nn.Module):
    """``tanh`` of a linear map, of which autocast has the product, with the product inside or at the end."""

    def __init__(self, product_last: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.linear = nn.Linear(12, 12)
        self.dropout = nn.Dropout(dropout)
        weight = torch.randn(12, 12, generator=generator)
        with torch.no_grad():
            self.linear.weight.copy_(0.6 * weight / torch.linalg.matrix_norm(weight, 2))
            self.linear.bias.copy_(0.1 * torch.randn(12, generator=generator))
        self.product_last = product_last
        self.seen: list[torch.dtype] = []

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        inner = torch.tanh(z + x) if self.product_last else self.dropout(z)
        product = self.linear(inner)
        self.seen.append(product.dtype)
        return product if self.product_last else torch.tanh(product + x)


def inputs(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of differing size, so that some are done before others and leave."""
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(5)) * torch.tensor([[0.0], [0.1], [1.0], [3.0]])
    return x.to(dtype).requires_grad_()


def mixed() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


def exact(cell: Cell, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The fixed point and the gradient of its squares in double precision, through a long iteration."""
    cell, x = copy.deepcopy(cell).double().eval(), x.detach().double().requires_grad_()
    z = torch.zeros_like(x)
    for _ in range(150):
        z = cell(z, x)
    return z, torch.autograd.grad(z.square().sum(), (x, *cell.parameters()))


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
@pytest.mark.parametrize("product_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "gradient", [None, PICARD, {"name": "neumann", "terms": 12}], ids=["krylov", "picard", "neumann"]
)
def test_answer_and_gradient_are_those_of_double_precision_to_the_dtype(
    gradient: Any, dtype: torch.dtype, product_last: bool, inside: bool
) -> None:
    cell, x = Cell(product_last), inputs(dtype)
    answer, wanted = exact(cell, x)
    layer = EquilibriumLayer(cell, solver="broyden", gradient=gradient, training=ROUGH)
    with mixed():
        found = layer.solve(x)
        if inside:
            found.z.square().sum().backward()
    if not inside:
        found.z.square().sum().backward()
    assert set(cell.seen) == {torch.bfloat16}
    assert found.solution.converged.all()
    assert found.z.dtype == dtype
    assert relative(found.z, answer) < 4 * EPS
    for each, derivative in zip((x, *cell.parameters()), wanted, strict=True):
        assert each.grad is not None
        assert each.grad.dtype == each.dtype
        assert relative(each.grad, derivative) < 8 * EPS


@pytest.mark.parametrize(
    "gradient", [{"name": "checkpointed-unrolled", "complete": False}, PICARD], ids=["checkpointed", "picard"]
)
@pytest.mark.parametrize("forward", [True, False])
def test_a_backward_pass_computes_as_the_forward_pass_did(gradient: Any, forward: bool) -> None:
    """Where it calls the cell again, whatever autocast is there: none after a mixed one, or some after a plain one."""
    cell = Cell()
    layer = EquilibriumLayer(cell, solver="picard", gradient=gradient, training=ROUGH)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=forward):
        z = layer(inputs())
    calls = len(cell.seen)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not forward):
        z.square().sum().backward()
    assert len(cell.seen) > calls
    assert set(cell.seen) == {torch.bfloat16 if forward else torch.float32}


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_steps_that_are_taken_again_are_those_that_were_unrolled(solver: str) -> None:
    found = []
    for gradient in ("unrolled", {"name": "checkpointed-unrolled", "every": 2}):
        cell, x = Cell(), inputs()
        with mixed():
            z = EquilibriumLayer(cell, solver=solver, gradient=gradient, training=ROUGH)(x)
        found.append((z, *torch.autograd.grad(z.square().sum(), (x, *cell.parameters()))))
    for one, other in zip(*found, strict=True):
        assert relative(one, other) < EPS / 16


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        *itertools.product(["picard", "anderson", "broyden"], [None, "unrolled", "checkpointed-unrolled"]),
        ("anderson", "shine"),
        ("broyden", "shine"),
        ("newton-krylov", None),
        ("auto", None),
    ],
)
def test_what_solves_it_keeps_its_own_precision(solver: str, gradient: Any) -> None:
    """A cell without a product has nothing for autocast: answer and gradient have the bits that they have without."""

    class Elementwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.linspace(-0.9, 0.7, 12))

        def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.slope * z + 0.2 * z.roll(1, 1) + x)

    found = []
    for enabled in (False, True):
        x = inputs()
        rule = Termination(rtol=1e-5)
        layer = EquilibriumLayer(Elementwise(), solver=solver, gradient=gradient, training=rule)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            z = layer(x)
            z.square().sum().backward()
        found.append((z, x.grad, layer.cell.slope.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("normalised", [weight_normalized, spectral_normalized])
def test_what_is_held_still_is_held_in_mixed_precision(normalised: Any) -> None:
    """Masks and normalised weights: the fixed point is one of the map that was solved, once more with its gradient."""
    torch.manual_seed(0)
    cell = normalised(Cell(dropout=0.3))
    layer = EquilibriumLayer(cell, solver="picard", gradient={"name": "neumann", "terms": 12}, training=ROUGH)
    with mixed():
        found = layer.solve(inputs())
        torch.testing.assert_close(found.f(found.z), found.z, rtol=0, atol=2e-2 * float(found.z.detach().norm()))
        z = torch.zeros_like(found.z)
        for _ in range(12):
            z = found.f(z)
    weights = list(cell.parameters())
    given = torch.autograd.grad(found.z.square().sum(), weights, retain_graph=True)
    again = torch.autograd.grad(found.z.square().sum(), weights, retain_graph=True)
    wanted = torch.autograd.grad(z.square().sum(), weights)
    for one, other, derivative in zip(given, again, wanted, strict=True):
        assert torch.equal(one, other)
        assert relative(one, derivative) < 8 * EPS


def test_second_derivatives_and_penalties_are_those_of_double_precision_to_the_dtype() -> None:
    found = []
    for dtype in (torch.float64, torch.float32):
        cell, x = Cell().to(dtype), inputs().detach().to(dtype).requires_grad_()
        layer = EquilibriumLayer(cell, training=Termination(rtol=1e-10 if dtype == torch.float64 else 1e-2))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
            solved = layer.solve(x)
            generator = torch.Generator().manual_seed(1)
            penalty = jacobian_penalty(solved.f, solved.z.detach(), vectors=20, generator=generator)
        (slope,) = torch.autograd.grad(penalty, cell.linear.weight)
        (first,) = torch.autograd.grad(solved.z.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), cell.linear.weight)
        found.append((penalty.detach(), slope, first.detach(), second))
    for wide, narrow in zip(*found, strict=True):
        assert relative(narrow, wide) < 8 * EPS


@pytest.mark.parametrize(("dtype", "enabled"), [(torch.bfloat16, False), (torch.float64, True), (torch.float16, True)])
def test_a_dtype_that_is_not_the_work_of_autocast_is_refused(dtype: torch.dtype, enabled: bool) -> None:
    class Turned(Cell):
        def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return super().forward(z, x).to(dtype)

    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled),
        pytest.raises(TypeError, match=rf"f\(z\) must have the dtype of z0, torch.float32, got {dtype}"),
    ):
        EquilibriumLayer(Turned())(inputs())
