r"""A convolutional deep equilibrium classifier, and the explicit network of the same cell.

    cell(z, x) = norm_3( relu( z + norm_2( x + conv_2( norm_1( relu( conv_1(z) ) ) ) ) ) )

This is the residual block of multiscale deep equilibrium models (Bai, Koltun & Kolter 2020, figure 3) with group
normalisation, on one scale. ``x`` is the image after a convolution and a normalisation. A linear layer classifies the
fixed point, averaged over patches of 2 x 2.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fixedpoint.layers import EquilibriumLayer

__all__ = ["Cell", "Classifier", "Repeated"]

_GROUPS = 4
CLASSES = 10


class Cell(nn.Module):
    """A residual block of two convolutions.

    Parameters
    ----------
    channels
        Number of channels of the state, a multiple of 4.
    dropout
        Share of channels that are dropped after the first convolution in training mode, 0 to 1.
    """

    def __init__(self, channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm_1, self.norm_2, self.norm_3 = (nn.GroupNorm(_GROUPS, channels) for _ in range(3))
        self.dropout = nn.Dropout2d(dropout)
        for conv in (self.conv_1, self.conv_2):
            nn.init.normal_(conv.weight, std=0.01)

    def forward(self, z: Float[Tensor, "B c h w"], x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B c h w"]:
        """The next state, from state ``z`` and input features ``x``."""
        inner = self.dropout(self.norm_1(torch.relu(self.conv_1(z))))
        value: Tensor = self.norm_3(torch.relu(z + self.norm_2(x + self.conv_2(inner))))
        return value


class Repeated(nn.Module):
    """The explicit network: a cell applied ``depth`` times, from zero."""

    def __init__(self, cell: nn.Module, depth: int) -> None:
        super().__init__()
        self.cell, self.depth = cell, depth

    def forward(self, x: Float[Tensor, "B c h w"], samples: Tensor | None = None) -> Float[Tensor, "B c h w"]:
        """The state after ``depth`` applications; ``samples`` is ignored."""
        z = torch.zeros_like(x)
        for _ in range(self.depth):
            z = self.cell(z, x)
        return z


class Classifier(nn.Module):
    """A classifier from images to the logits of ten classes.

    Parameters
    ----------
    body
        Maps features of shape ``(B, channels, 8, 8)`` to features of the same shape: an ``EquilibriumLayer`` or
        :class:`Repeated`.
    channels
        Number of channels of the features.
    """

    def __init__(self, body: EquilibriumLayer | Repeated, channels: int) -> None:
        super().__init__()
        self.inject = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.GroupNorm(_GROUPS, channels))
        self.body = body
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels * 16, CLASSES))

    def forward(self, images: Float[Tensor, "B 1 8 8"], samples: Tensor | None = None) -> Float[Tensor, "B 10"]:
        """The logits of the classes.

        Parameters
        ----------
        images
            Standardised images.
        samples
            Indices of the images in the data set, shape ``(B,)``, int64, by which warm starts are stored; None: no warm
            start.
        """
        logits: Tensor = self.head(self.body(self.inject(images), samples=samples))
        return logits
