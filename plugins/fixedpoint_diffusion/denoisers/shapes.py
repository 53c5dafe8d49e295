"""Ten shapes drawn from formulas, the means of the mixture of ``ShapesModel``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SHAPES", "draw_shapes"]

# Each function is negative inside its shape; x and y run over [-1, 1].
SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disk": lambda x, y: (x**2 + y**2).sqrt() - 0.62,
    "ring": lambda x, y: ((x**2 + y**2).sqrt() - 0.6).abs() - 0.18,
    "square": lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.56,
    "frame": lambda x, y: (torch.maximum(x.abs(), y.abs()) - 0.62).abs() - 0.15,
    "diamond": lambda x, y: x.abs() + y.abs() - 0.8,
    "plus": lambda x, y: torch.minimum(x.abs(), y.abs()) - 0.2 + (torch.maximum(x.abs(), y.abs()) > 0.8) * 1.0,
    "cross": lambda x, y: torch.minimum((x - y).abs(), (x + y).abs()) - 0.28,
    "bars": lambda x, y: (((x + 1) * 2.0) % 1.0 - 0.5).abs() - 0.25 + 0.0 * y,
    "triangle": lambda x, y: torch.maximum(x.abs() * 1.6 - (y + 0.75) * 0.8, y - 0.6),
    "moon": lambda x, y: torch.maximum((x**2 + y**2).sqrt() - 0.75, 0.6 - ((x - 0.35) ** 2 + y**2).sqrt()),
}


def draw_shapes(size: int) -> Float[Tensor, "10 1 size size"]:
    """The shapes as images of ``size`` x ``size`` pixels, float64: -1 outside, 1 inside, with smoothed edges."""
    fine = 4 * size
    axis = (torch.arange(fine, dtype=torch.float64, device="cpu") + 0.5) / fine * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    drawn = torch.stack([torch.where(shape(x, y) < 0, 1.0, -1.0) for shape in SHAPES.values()]).double()
    return torch.nn.functional.avg_pool2d(drawn.unsqueeze(1), 4)
