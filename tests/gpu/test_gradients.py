"""Gradients on a device are those of the CPU, and none of them waits for it more than its solves do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import Device
from torch import Tensor

import fixedpoint as fp
from fixedpoint.testing.problems import tanh_cell

pytestmark = pytest.mark.gpu

# Estimator, forward solver, and how near: what SHINE has learnt last of the Jacobian is a difference of roundings.
CASES: dict[str, tuple[Any, str, float]] = {
    "one-step": ("one-step", "anderson", 1e-9),
    "implicit": ("implicit", "anderson", 1e-9),
    "implicit, GMRES": ({"name": "implicit", "solver": "krylov"}, "anderson", 1e-9),
    "implicit, Broyden": ({"name": "implicit", "solver": "broyden"}, "picard", 1e-9),
    "neumann": ("neumann", "picard", 1e-9),
    "phantom": ("phantom", "picard", 1e-9),
    "shine, Broyden": ("shine", "broyden", 1e-3),
    "shine, Anderson": ("shine", "anderson", 1e-3),
    "unrolled": ("unrolled", "anderson", 1e-8),
    "checkpointed": ("checkpointed-unrolled", "anderson", 1e-8),
}


def gradients(device: str, estimator: Any, solver: str) -> tuple[Tensor, ...]:
    cell = tanh_cell(size=6, rows=3, gain=0.9, seed=2)
    weight, offset, start = (part.to(device) for part in (cell.weight, cell.offset, cell.start))
    weight.requires_grad_()
    offset.requires_grad_()

    def f(z: Tensor) -> Tensor:
        return torch.tanh((weight * z.unsqueeze(1)).sum(-1) + offset)

    solution = fp.solve(f, start, solver=solver, gradient=estimator, rtol=1e-11, rows="independent")
    assert solution.converged.all(), solution.message
    return torch.autograd.grad(solution.z.square().sum(), (weight, offset))


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_cpu(device: Device, name: str) -> None:
    estimator, solver, near = CASES[name]
    here = gradients("cpu", estimator, solver)
    there = gradients(device.device, estimator, solver)
    for one, other in zip(there, here, strict=True):
        assert one.device == torch.device(device.device)
        assert (one.cpu() - other).norm() <= near * other.norm()


def test_backwards_by_the_adjoint_the_host_waits_once_a_round(device: Device) -> None:
    """And a few times to begin and to end it."""
    cell = tanh_cell(size=6, rows=3, gain=0.9, seed=2)
    weight, start = cell.weight.to(device.device).requires_grad_(), cell.start.to(device.device)
    offset = cell.offset.to(device.device)
    solution = fp.solve(
        lambda z: torch.tanh((weight * z.unsqueeze(1)).sum(-1) + offset),
        start,
        gradient={"name": "implicit", "solver": "picard"},
        rtol=1e-10,
        rows="independent",
    )
    before = device.waits
    torch.autograd.grad(solution.z.square().sum(), weight)
    rounds = solution.extras["adjoint"].rounds
    assert rounds > 12
    assert device.waits - before <= rounds + 6
