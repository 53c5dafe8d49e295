"""The benchmark of training steps: both layers have the same step, and its errors are those of the tolerance."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torchdeq")
from benchmarks import training


@pytest.mark.parametrize("method", list(training.METHODS))
def test_both_layers_come_to_the_same_step(method: str) -> None:
    torch.manual_seed(0)
    case = training.CASES["graph"]()
    found = training.measured(case, method, 1e-5, "default", seconds=0.0)
    for name in ("ours", "theirs"):
        assert 0 < found[name]["error"] < 1e-4
        assert 0 < found[name]["gradient"] < 1e-3
        assert min(found[name][part] for part in ("ms", "forward", "adjoint", "rest")) > 0
    assert found["products"] > 1


def test_the_exact_step_is_that_of_elimination() -> None:
    torch.manual_seed(1)
    case = training.Case.of(training.Sine(6, 0.7), 3, 6)
    exact = training.Exact(case)
    exact.step()
    weight, bias = exact.case.cell.linear.weight.detach(), exact.case.cell.linear.bias.detach()
    assert torch.allclose(torch.sin(exact.z @ weight.mT + bias + case.x.double()), exact.z, rtol=1e-10)
    slope = torch.cos(exact.z @ weight.mT + bias + case.x.double())
    g = 2 * case.weight.double() * exact.z
    u = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - slope.unsqueeze(1) * weight.mT, g)
    wanted = torch.einsum("bi,bj->ij", u * slope, exact.z)
    assert torch.allclose(exact.gradients[0], wanted, rtol=1e-8)
