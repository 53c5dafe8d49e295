"""Shift: blocks of a state moved towards its start, by another number in every row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

__all__ = ["Shift"]


@dataclass(frozen=True, eq=False)
class Shift:
    """Every row's blocks move to the front by a number of its own; zeros come in behind.

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
        """A tensor with a dimension for the blocks, shifted along it; in its own memory unless gradients flow."""
        moved: Tensor = tensor.flatten(0, 1).index_select(0, self._source).view(tensor.shape)
        moved.masked_fill_(~self.inside.view(*self.inside.shape, *[1] * (tensor.ndim - 2)), 0)
        return moved if torch.is_grad_enabled() else tensor.copy_(moved)

    def of_state(self, state: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """A state, shifted; in its own memory unless gradients flow."""
        blocks: Tensor = self.of_blocks(state.unflatten(1, (self.blocks, -1)))
        return blocks.flatten(1)

    @cached_property
    def inside(self) -> Bool[Tensor, "B blocks"]:
        """The blocks that have come from another, or stayed."""
        return self._places < self.blocks

    @cached_property
    def _places(self) -> Int[Tensor, "B blocks"]:
        return torch.arange(self.blocks, device=self.by.device) + self.by.unsqueeze(1)

    @cached_property
    def _source(self) -> Int[Tensor, " n"]:
        rows = torch.arange(len(self.by), device=self.by.device).unsqueeze(1) * self.blocks
        return (rows + self._places.clamp(max=self.blocks - 1)).flatten()
