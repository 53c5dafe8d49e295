"""Inputs of unlucky sizes, and cells that mix the rows: every row that is called converged is so in the whole batch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from layer_cells import draw
from torch import nn

from fixedpoint import Termination, solve
from fixedpoint.core.status import Status
from fixedpoint.layers import EquilibriumLayer, EquilibriumWarning

RULE = Termination(rtol=1e-8, max_rounds=300)
B, D = 5, 4
X = draw(0, B, D) * torch.logspace(-3, 1, B, dtype=torch.float64).unsqueeze(1)
MEMORY = draw(1, B, D)


class Attends(nn.Module):
    """To tokens that are the same for every row, as many as there are rows."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(0.05 * draw(2, D, D))
        self.calls: list[int] = []

    def forward(self, z: torch.Tensor, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(z))
        return 0.3 * z + torch.softmax(z @ self.query @ memory.T, -1) @ memory + x


class Positions(nn.Module):
    """A table by the second dimension of the state, which is as long as the batch: cut, it does not even fit."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, z: torch.Tensor, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.scale * z + x + table)


class Labels(nn.Module):
    """A class-conditional gate, a table of as many classes as there are rows, in a dict beside the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Parameter(0.2 * draw(3, D, D))

    def forward(self, z: torch.Tensor, x: torch.Tensor, *, condition: dict[str, torch.Tensor]) -> torch.Tensor:
        gate = condition["table"].softmax(0)[condition["label"]]
        return torch.tanh(z @ self.linear * gate + x)


def layer(cell: nn.Module, **options: Any) -> EquilibriumLayer:
    return EquilibriumLayer(cell, **{"training": RULE, "evaluation": RULE, "solver": "picard", **options})


def cases() -> dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]]:
    wide = draw(4, B, B, D) * X.unsqueeze(1)
    condition = {"label": torch.tensor([4, 0, 0, 3, 1]), "table": 2 * draw(5, B, D)}
    return {
        "memory": (Attends(), (X, MEMORY), {}, ["memory"]),
        "memory by position": (Attends(), (X, MEMORY), {}, [1]),
        "memory by keyword": (Attends(), (X,), {"memory": MEMORY}, ["memory"]),
        "positions": (Positions(), (wide, draw(6, B, D)), {}, [1]),
        "nested table": (Labels(), (X,), {"condition": condition}, [("condition", "table")]),
    }


def repeated(cell: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], times: int = 400) -> torch.Tensor:
    z = torch.zeros_like(inputs[0])
    for _ in range(times):
        z = cell(z, *inputs, **keywords)
    return z


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", cases())
def test_what_belongs_to_every_row_and_has_the_size_of_the_batch(name: str, training: bool, stated: bool) -> None:
    """Answer and gradient are those of the cell without end; unstated, with a warning that says what to state."""
    cell, inputs, keywords, shared = cases()[name]
    which = layer(cell, shared=shared if stated else None).train(training)
    with warnings.catch_warnings(record=True) as caught, torch.set_grad_enabled(training):
        warnings.simplefilter("always")
        found = which.solve(*inputs, **keywords)
        assert found.solution.converged.all()
        torch.testing.assert_close(found.z, repeated(cell, inputs, keywords), rtol=1e-6, atol=1e-8)
        if training:
            weights = list(cell.parameters())
            wanted = torch.autograd.grad(repeated(cell, inputs, keywords).square().sum(), weights)
            given = torch.autograd.grad(found.z.square().sum(), weights)
            for one, other in zip(given, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    told = [str(each.message) for each in caught if issubclass(each.category, EquilibriumWarning)]
    assert len(told) == (not stated)
    assert all("State which of them belong to every row" in sentence for sentence in told)


def test_stated_inputs_leave_rows_that_are_done_out() -> None:
    cell = Attends()
    found = layer(cell, shared=["memory"]).solve(X, MEMORY)
    assert len(set(found.solution.rounds.tolist())) > 1
    assert cell.calls[0] == B > cell.calls[-2]
    assert sum(cell.calls) == found.solution.counts.computed == found.solution.evaluations.sum()


def test_what_is_done_twice_is_counted_twice() -> None:
    cell = Attends()
    with pytest.warns(EquilibriumWarning, match="inputs 0, 1"):
        found = layer(cell).solve(X, MEMORY)
    assert len(cell.calls) == found.solution.counts.calls
    assert sum(cell.calls) == found.solution.counts.computed


def test_without_gradients_the_answer_is_evaluated_once_more_where_rows_were_left_out() -> None:
    cell = Attends()
    which = layer(cell, shared=["memory"])
    with torch.no_grad():
        found = which.solve(X, MEMORY)
        assert cell.calls[-1] == B
        assert len(cell.calls) == found.solution.counts.calls == found.solution.rounds.max() + 1
        alone = which.solve(X[:1], MEMORY)
        assert alone.solution.counts.calls == alone.solution.rounds[0]


def test_objects_that_hold_tensors_cannot_be_taken_and_need_not() -> None:
    @dataclass
    class Batch:
        gain: torch.Tensor

    class Cell(nn.Module):
        def forward(self, z: torch.Tensor, x: torch.Tensor, batch: Batch) -> torch.Tensor:
            return batch.gain * z + x

    gain = torch.linspace(0, 0.8, B, dtype=torch.float64).unsqueeze(1)
    with pytest.warns(EquilibriumWarning, match="it raises RuntimeError"):
        found = layer(Cell(), gradient="one-step").solve(X, Batch(gain))
    torch.testing.assert_close(found.z, X / (1 - gain), rtol=1e-6, atol=1e-9)


def test_the_adjoint_equation_takes_no_rows_that_are_not_their_own() -> None:
    """From the solution all rows are done at once; the adjoint solve is the first to require some of them alone."""

    class Cell(nn.Module):
        def forward(self, z: torch.Tensor, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
            return x * (z @ memory.T @ memory) + 1

    memory = MEMORY / torch.linalg.matrix_norm(MEMORY, 2)
    x = torch.linspace(0, 0.9, B, dtype=torch.float64).unsqueeze(1).requires_grad_()
    eye, ones = torch.eye(D, dtype=torch.float64), torch.ones(B, 1, D, dtype=torch.float64)
    fixed = (ones @ torch.linalg.inv(eye - x.unsqueeze(2) * memory.T @ memory)).squeeze(1)
    gradient = {"name": "implicit", "solver": "picard", "termination": {"rtol": 1e-10}}
    found = layer(Cell(), gradient=gradient).solve(x, memory, start=fixed)
    assert found.solution.counts.rounds == 2
    (given,) = torch.autograd.grad(found.z.sum(), x)
    (wanted,) = torch.autograd.grad(fixed.sum(), x)
    torch.testing.assert_close(given, wanted, rtol=1e-8, atol=0)


class Normalised(nn.Module):
    """Batch normalisation by hand, which no look at the modules finds."""

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * torch.nn.functional.batch_norm(z, None, None, training=True) + 0.4 * z + x


class AcrossTheBatch(nn.Module):
    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.softmax(z @ z.T, -1) @ z * 0.5 + x)


class Graph(nn.Module):
    """Nodes of a path, each the mean of its neighbours and its input."""

    def forward(self, z: torch.Tensor, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return 0.9 * edges @ z + x


def path(count: int) -> torch.Tensor:
    edges = torch.zeros(count, count, dtype=torch.float64)
    near = torch.arange(count - 1)
    edges[near, near + 1] = edges[near + 1, near] = 0.5
    return edges


@pytest.mark.parametrize("gradient", [None, "one-step", "neumann", "phantom", "unrolled"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cell", [Normalised(), AcrossTheBatch(), Graph()], ids=lambda cell: type(cell).__name__)
@pytest.mark.filterwarnings("ignore::fixedpoint.AdjointWarning")
def test_rows_that_depend_on_one_another_are_not_called_converged(
    cell: nn.Module, training: bool, gradient: Any
) -> None:
    x = X.clone().requires_grad_()
    inputs = (x, path(B)) if isinstance(cell, Graph) else (x,)
    which = layer(cell, gradient=gradient).train(training)
    with torch.set_grad_enabled(training):
        with pytest.warns(EquilibriumWarning, match="rows='joint'"):
            found = which.solve(*inputs)
        left = (found.f(found.z) - found.z).norm(dim=1) / found.f(found.z).norm(dim=1)
    assert Status.MIXED in found.solution.status
    for row, said in enumerate(found.solution.converged):
        assert not said or left[row] <= 1.01 * RULE.rtol
    shown = torch.tensor([status is Status.MIXED for status in found.solution.status])
    torch.testing.assert_close(torch.from_numpy(found.solution.relative_error)[shown], left.detach()[shown])


@pytest.mark.parametrize("cell", [AcrossTheBatch(), Graph()], ids=lambda cell: type(cell).__name__)
def test_joint_rows_are_one_fixed_point(cell: nn.Module) -> None:
    x = X.clone().requires_grad_()
    inputs = (x, path(B)) if isinstance(cell, Graph) else (x,)
    found = layer(cell, rows="joint", solver="anderson").solve(*inputs)
    assert found.solution.status == (Status.CONVERGED,)
    torch.testing.assert_close(found.z, repeated(cell, inputs, {}), rtol=1e-6, atol=1e-6)
    (given,) = torch.autograd.grad(found.z.square().sum(), x)
    (wanted,) = torch.autograd.grad(repeated(cell, inputs, {}).square().sum(), x)
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)


def test_a_plain_solve_sees_it_by_its_gradient() -> None:
    x, edges = X.clone().requires_grad_(), path(B)
    solution = solve(lambda z: 0.9 * edges @ z + x, 0 * X, solver="picard", gradient="one-step", rtol=1e-6)
    assert Status.MIXED in solution.status
    assert "rows='joint'" in solution.message
    independent = solve(lambda z: 0.9 * z + x, 0 * X, solver="picard", gradient="one-step", rtol=1e-6)
    assert independent.converged.all()


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_passes(training: bool) -> None:
    cell = Attends()
    which = layer(cell).train(training)
    x = X[:0].clone().requires_grad_()
    found = which.solve(x, MEMORY)
    assert found.z.shape == (0, D)
    assert (found.solution.status, found.solution.message) == ((), "")
    assert "Solution" in repr(found.solution)
    found.z.sum().backward()
    assert cell.query.grad is not None
    assert not cell.query.grad.any()
    which(X, MEMORY[:3])
    assert which.statistics["training" if training else "evaluation"].rows == B


@pytest.mark.parametrize(
    ("shared", "sentence"),
    [
        ("memory", "must be a list of positions, names or paths"),
        (["memori"], "names 'memori', and the cell takes x, memory beside the state"),
        ([-1], "must name positions from 0"),
        ([1.0], "got 1.0 in it"),
        ([2], "names position 2, and the cell takes x, memory beside the state"),
        (1, "must be a list of positions, names or paths of inputs, got 1"),
    ],
)
def test_a_statement_that_says_nothing_is_refused(shared: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        layer(Attends(), shared=shared)


def test_joint_rows_are_for_layers_without_samples() -> None:
    from fixedpoint.layers import WarmStart

    with pytest.raises(ValueError, match="requires independent rows"):
        layer(Attends(), rows="joint", warm_start=WarmStart(3, D))
    with pytest.raises(ValueError, match="rows must be 'independent' or 'joint', got 'both'"):
        layer(Attends(), rows="both")
