"""Rows taken out of a cell's problem, and out of what was taken: the whole problem's own, masks of dropout included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layer_cells import TanhCell, draw

from fixedpoint import Termination
from fixedpoint.layers import EquilibriumLayer
from fixedpoint.layers.problem import CellProblem

TIGHT = {"training": Termination(rtol=1e-12, max_rounds=300)}


def subset(data: st.DataObject, count: int, label: str) -> torch.Tensor:
    """Some of so many rows, in order, at least one."""
    rows = data.draw(st.sets(st.integers(0, count - 1), min_size=1), label=label)
    return torch.tensor(sorted(rows))


@given(st.data())
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_is_taken_twice_is_of_the_first_rows(share: float, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 7), label="rows")
    torch.manual_seed(data.draw(st.integers(0, 99), label="seed"))
    cell, start = TanhCell(dropout=share), draw(1, count, 6)
    whole = CellProblem(cell, (draw(2, count, 6),), start)
    z = draw(3, count, 6)
    value = whole(z)
    first = subset(data, count, "first")
    second = subset(data, len(first), "second")
    third = subset(data, len(second), "third")
    part, rows = whole, torch.arange(count)
    for chosen in (first, second, third):
        part, rows = part.take(chosen), rows[chosen]
        torch.testing.assert_close(part(z[rows]), value[rows], rtol=1e-13, atol=1e-13)
        assert torch.equal(part.initial(), start[rows])


def test_rows_handed_on_and_left_out_again_keep_their_masks() -> None:
    """``auto`` takes the rows that its first solver did not solve, and its second leaves out those that are done."""

    class Pulled(TanhCell):
        def forward(self, z: torch.Tensor, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
            return gain * self.linear(self.dropout(z)) + x

    gain = torch.tensor([0.0, 5.0, 0.5, -4.0, 0.1, 3.0], dtype=torch.float64).unsqueeze(1)
    torch.manual_seed(5)
    solver = {"name": "polyalgorithm", "first": {"name": "picard"}, "then": {"name": "broyden"}}
    found = EquilibriumLayer(Pulled(dropout=0.5), solver=solver, **TIGHT).solve(draw(4, 6, 6), gain)
    assert found.solution.converged.all()
    torch.testing.assert_close(found.f(found.z), found.z, rtol=1e-9, atol=1e-9)
