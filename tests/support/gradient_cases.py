"""Maps with differentiable parameters, for the tests of gradient estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fixedpoint as fp
from fixedpoint.testing.problems import Affine

START = torch.zeros(2, 3, dtype=torch.float64)


def parameters(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight and an offset that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.3 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    offset = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    return weight.requires_grad_(), offset.requires_grad_()


def cotangent(shape: Any = (2, 3), seed: int = 7) -> torch.Tensor:
    """Return a random cotangent."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def affine(weight: torch.Tensor, offset: torch.Tensor) -> Callable[[Any], Any]:
    """Return an affine map of a tensor."""
    return lambda z: z @ weight.T + offset


def cell(weight: torch.Tensor, offset: torch.Tensor) -> Callable[[Any], Any]:
    """Return a tanh cell of a tensor."""
    return lambda z: torch.tanh(z @ weight.T + offset)


def pair(weight: torch.Tensor, offset: torch.Tensor) -> Callable[[Any], Any]:
    """Return a map of two tensors that depend on one another."""
    return lambda z: (torch.tanh(z[0] @ weight.T + 0.3 * z[1] + offset), 0.2 * z[0] * z[1] + torch.sin(offset))


MAPS: dict[str, tuple[Callable[..., Callable[[Any], Any]], Any]] = {
    "affine": (affine, START),
    "tanh": (cell, START),
    "two tensors": (pair, (START, START)),
}


def by_offset(problem: Affine, gradient: Any, g: torch.Tensor, **options: Any) -> tuple[torch.Tensor, fp.Solution]:
    """Return the gradient of ``g . z`` by the offset of an affine map, which is the adjoint ``u``, and the solution."""
    offset = problem.offset.clone().requires_grad_()
    solution = fp.solve(
        lambda z: (problem.matrix * z.unsqueeze(1)).sum(-1) + offset,
        problem.start,
        rows="independent",
        gradient=gradient,
        **{"rtol": 1e-13, "max_rounds": 400, **options},
    )
    return torch.autograd.grad(solution.state, offset, g)[0], solution


def exact(problem: Affine, g: torch.Tensor) -> torch.Tensor:
    """Return the exact adjoint ``(I - A^T)^{-1} g``."""
    return torch.linalg.solve(torch.eye(g.shape[1], dtype=g.dtype) - problem.matrix.mT, g)
