"""Shifting the blocks of a state towards its front, by a different number in every row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

__all__ = ["Shift"]


@dataclass(frozen=True, eq=False)
class Shift:
    """A shift of each row's blocks towards the front, by its own number; the blocks freed at the end become zero.

    Attributes
    ----------
    by
        Shape ``(B,)``, int64, from 0 to ``blocks``.
    blocks
        Number of equal blocks of a row.
    """

    by: Int[Tensor, " B"]
    blocks: int

    def of_blocks(self, tensor: Shaped[Tensor, "B blocks *rest"]) -> Shaped[Tensor, "B blocks *rest"]:
        """Shift a tensor along its dimension of blocks, the second; in place unless gradients flow."""
        # Gathered into new memory first: source and target overlap.
        moved: Tensor = tensor.flatten(0, 1).index_select(0, self._source).view(tensor.shape)
        moved.masked_fill_(self._outside.view(*tensor.shape[:2], *[1] * (tensor.ndim - 2)), 0)
        return moved if torch.is_grad_enabled() else tensor.copy_(moved)

    def of_state(self, state: Shaped[Tensor, "B n *rest"]) -> Shaped[Tensor, "B n *rest"]:
        """Shift a state, or another tensor whose second dimension is in blocks; in place unless gradients flow."""
        blocks: Tensor = self.of_blocks(state.unflatten(1, (self.blocks, -1)))
        return blocks.flatten(1, 2)

    @cached_property
    def _outside(self) -> Bool[Tensor, "B blocks"]:
        """The positions to which no block of the old state moves."""
        return self._places >= self.blocks

    @cached_property
    def _places(self) -> Int[Tensor, "B blocks"]:
        """The old position of the block that moves to each position."""
        return torch.arange(self.blocks, device=self.by.device) + self.by.unsqueeze(1)

    @cached_property
    def _source(self) -> Int[Tensor, " n"]:
        """The same as indices into the blocks of all rows, clamped to the row."""
        rows = torch.arange(len(self.by), device=self.by.device).unsqueeze(1) * self.blocks
        return (rows + self._places.clamp(max=self.blocks - 1)).flatten()
