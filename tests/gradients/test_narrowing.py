"""An adjoint equation out of which rows are taken, again and again: the equation of those rows, and what it cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gradient_cases import cotangent
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint as fp
from fixedpoint.core.problem import FunctionProblem, HasTake
from fixedpoint.gradients.adjoint import RowTakingAdjoint
from fixedpoint.testing.problems import TanhCell, tanh_cell


class Recorder:
    """Products with matrices, one for each row, and which rows were recorded anew."""

    def __init__(self, rows: int, size: int, seed: int) -> None:
        self.matrices = cotangent((rows, size, size), seed)
        self.asked: list[list[int]] = []

    def of(self, rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        part = self.matrices[rows]
        return lambda v: (part * v.unsqueeze(1)).sum(-1)

    def __call__(self, rows: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        self.asked.append(rows.tolist())
        return self.of(rows)


@given(st.data())
def test_some_rows_have_their_own_equation(data: st.DataObject) -> None:
    """However they are taken, the map is ``K v + g`` of these rows; each recording is counted, of its rows alone."""
    rows = data.draw(st.integers(1, 9), label="rows")
    recorder = Recorder(rows, 3, seed=data.draw(st.integers(0, 99), label="seed"))
    g = cotangent((rows, 3), seed=100)
    whole = RowTakingAdjoint(recorder.of(torch.arange(rows)), g, recorder)
    left = np.arange(rows)
    wanted = np.zeros(rows, dtype=np.int64)
    while len(left):
        chosen = torch.from_numpy(left)
        part = whole.take(chosen)
        v = cotangent((len(left), 3), seed=int(left.sum()))
        assert torch.equal(part(v), recorder.of(chosen)(v) + g[chosen])
        assert torch.equal(part.product(v, v), recorder.of(chosen)(v))
        if recorder.asked and recorder.asked[-1] == left.tolist():
            wanted[left] += 1
            assert whole.evaluations.tolist() == wanted.tolist()
        keep = data.draw(st.lists(st.booleans(), min_size=len(left), max_size=len(left)), label="keep")
        if all(keep):
            keep[0] = False
        left = left[np.array(keep)]
    assert whole.evaluations.sum() == sum(map(len, recorder.asked))


def test_they_are_recorded_anew_once_they_are_half() -> None:
    recorder = Recorder(8, 2, seed=0)
    whole = RowTakingAdjoint(recorder.of(torch.arange(8)), cotangent((8, 2)), recorder)
    for rows in ([0, 1, 3, 5, 7], [1, 3, 5, 7], [1, 5, 7], [5, 7], [7], [1, 3, 5]):
        whole.take(torch.tensor(rows))
    assert recorder.asked == [[1, 3, 5, 7], [5, 7], [7]]
    assert whole.evaluations.tolist() == [0, 1, 0, 1, 0, 2, 0, 3]


class Taken(FunctionProblem, HasTake):
    """Tanh cells of differing gains, of which rows can be taken; notes which are evaluated once ``noting``."""

    def __init__(self, cell: TanhCell, offset: torch.Tensor, gains: torch.Tensor) -> None:
        self.cell, self.offset, self.gains = cell, offset, gains
        self.noting = False
        self.sizes: list[int] = []
        super().__init__(self.value, cell.start, "independent")

    def value(self, z: torch.Tensor) -> torch.Tensor:
        if self.noting:
            self.sizes.append(len(z))
        return torch.tanh(self.gains * (self.cell.weight * z.unsqueeze(1)).sum(-1) + self.offset)

    def take(self, rows: torch.Tensor) -> Taken:
        part = Taken(self.cell.take(rows), self.offset[rows], self.gains[rows])
        part.noting, part.sizes = self.noting, self.sizes
        return part


@pytest.mark.parametrize("solver", [{"name": "krylov", "method": "gmres"}, "picard", "anderson", "broyden"], ids=str)
def test_the_report_counts_what_recording_anew_took(solver: Any) -> None:
    """Row by row: the products are those of the problem whose rows cannot be taken, and one evaluation a recording."""
    cell = tanh_cell(size=12, rows=6, gain=1.0, seed=3)
    gains = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64).unsqueeze(1)
    estimator = {"name": "implicit", "solver": solver, "termination": {"rtol": 1e-9}}
    found = []
    for narrowing in (False, True):
        offset = cell.offset.clone().requires_grad_()
        problem = Taken(cell, offset, gains)
        f = problem if narrowing else problem.value
        rows = None if narrowing else "independent"
        start = None if narrowing else cell.start
        solution = fp.solve(f, start, rows=rows, solver="picard", rtol=1e-12, max_rounds=500, gradient=estimator)
        problem.noting = True
        (slope,) = torch.autograd.grad(solution.state, offset, cotangent(cell.start.shape))
        found.append((slope, solution.extras["adjoint"].products, problem.sizes))
    (plain, products, none), (slope, counted, sizes) = found
    assert torch.allclose(slope, plain, rtol=1e-8, atol=1e-12)
    assert (len(none), len(sizes) >= 1) == (0, True)
    more = counted - products
    assert more.sum() == sum(sizes)
    assert sorted(more.tolist()) == sorted(sum(size > place for size in sizes) for place in range(len(gains)))
