"""A backward pass of a layer whose adjoint equation is not solved says so, is counted, and gives what was asked for."""

from typing import Any

import pytest
import torch
from layer_cells import TanhCell, draw

from fixedpoint import AdjointWarning, ConvergenceError, Termination
from fixedpoint.layers import EquilibriumLayer

X = draw(7, 3, 6)


def layer(on_failure: str) -> EquilibriumLayer:
    rule = {"rtol": 1e-10, "max_rounds": 2}
    estimator: Any = {"name": "implicit", "solver": "picard", "termination": rule, "on_failure": on_failure}
    return EquilibriumLayer(TanhCell(), gradient=estimator, training=Termination(rtol=1e-12))


def through_calls(which: EquilibriumLayer, calls: int) -> torch.Tensor:
    """The gradient by the weight through so many calls from the fixed point."""
    z = which(X).detach()
    for _ in range(calls):
        z = which.cell(z, X)
    (found,) = torch.autograd.grad(z.square().sum(), which.cell.linear.weight)
    return found


@pytest.mark.parametrize(("on_failure", "calls"), [("warn", 2), ("one-step", 1)])
def test_it_warns_and_gives_what_it_says(on_failure: str, calls: int) -> None:
    """Two rounds from the cotangent are a product; with it, the gradient is that through two calls; without, one."""
    trained = layer(on_failure)
    loss = trained(X).square().sum()
    with pytest.warns(AdjointWarning, match="the adjoint equation of 3 of 3 rows was not solved"):
        loss.backward()
    given = trained.cell.linear.weight.grad
    assert given is not None
    torch.testing.assert_close(given, through_calls(trained, calls), rtol=1e-9, atol=1e-12)
    statistics = trained.statistics["training"]
    assert statistics.means()["adjoint_unsolved"] == 1.0
    assert (statistics.adjoint_rows, statistics.adjoint_unsolved) == (3, 3)


def test_it_raises_where_that_was_asked_for() -> None:
    trained = layer("raise")
    loss = trained(X).square().sum()
    with pytest.raises(ConvergenceError, match="the adjoint equation of 3 of 3 rows was not solved"):
        loss.backward()
    assert trained.cell.linear.weight.grad is None
