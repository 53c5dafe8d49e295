"""The generators belong to the program: calls of a cell after its first one leave them where they find them."""

from typing import Any

import pytest
import torch
from layer_cells import TanhCell, draw

from fixedpoint import Termination
from fixedpoint.layers import EquilibriumLayer

X = draw(7, 3, 6)
PICARD = {"name": "implicit", "solver": "picard", "termination": {"rtol": 1e-6}}


@pytest.mark.parametrize(
    ("gradient", "again"),
    [(PICARD, True), ({"name": "checkpointed-unrolled"}, True), ("one-step", False)],
)
def test_what_is_drawn_around_a_backward_pass_is_drawn_anew(gradient: Any, again: bool) -> None:
    """Between the forward and the backward pass, and after it, numbers follow those of one call of the cell."""
    cell = TanhCell(dropout=0.5)
    torch.manual_seed(2)
    cell(X, X)
    wanted = torch.rand(3, 4)
    layer = EquilibriumLayer(cell, gradient=gradient, training=Termination(rtol=1e-8, max_rounds=200))
    gain = torch.tensor([[0.0], [0.1], [1.0]], dtype=torch.float64)
    torch.manual_seed(2)
    found = layer.solve(gain * X)
    drawn = [torch.rand(4)]
    before = cell.calls
    found.z.square().sum().backward()
    assert (cell.calls > before) == again  # the cell is called by this backward pass
    drawn.append(torch.rand(4))
    found.f(found.z)
    drawn.append(torch.rand(4))
    assert torch.equal(torch.stack(drawn), wanted)
