"""Cells shared by the tests of the layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TanhCell(nn.Module):
    """``tanh(W z + x)`` with a weight of 2-norm ``gain``, and dropout applied to ``z``."""

    def __init__(self, size: int = 6, gain: float = 0.8, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size, dtype=torch.float64)
        self.dropout = nn.Dropout(dropout)
        weight = draw(seed, size, size)
        with torch.no_grad():
            self.linear.weight.copy_(gain * weight / torch.linalg.matrix_norm(weight, 2))
            self.linear.bias.copy_(0.1 * draw(seed + 1, size))
        self.calls = 0

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(self.linear(self.dropout(z)) + x)


class TwoScales(nn.Module):
    """A cell whose state is two tensors of different shapes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.fine = nn.Parameter(0.3 * draw(seed, 4, 4))
        self.down = nn.Parameter(0.3 * draw(seed + 1, 4, 2))
        self.up = nn.Parameter(0.3 * draw(seed + 2, 2, 4))

    def forward(self, z: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse = z
        return torch.tanh(fine @ self.fine + coarse @ self.up + x), torch.tanh(fine @ self.down)
