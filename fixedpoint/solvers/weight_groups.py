"""Weight groups: which parts of a row have weights of their own in Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.combine import add_combination
from fixedpoint.core.reduce import block_dots, row_dots

__all__ = ["WeightGroups", "renewed_blocks"]


@dataclass(frozen=True)
class WeightGroups:
    """How a row is divided into parts, each with its own weights.

    The parts are ``blocks`` equal blocks or, if ``slices`` is not empty, the tensors of the state. With ``running``,
    the weights of a part are computed from the inner products of all parts up to and including it.
    """

    blocks: int = 1
    slices: tuple[slice, ...] = ()
    running: bool = False

    @property
    def count(self) -> int:
        """The number of parts."""
        return len(self.slices) or self.blocks

    def dots(self, columns: Float[Tensor, "B m D"], vector: Float[Tensor, "B D"]) -> Float[Tensor, "B parts m"]:
        """Inner products of every column with the vector, for each part separately; float64."""
        if not self.slices:
            return block_dots(columns, vector, self.blocks)
        return torch.stack([row_dots(columns[..., part], vector[..., part]) for part in self.slices], dim=1)

    def combination(
        self,
        base: Float[Tensor, "B D"],
        columns: Float[Tensor, "B m D"],
        weights: Float[Tensor, "B parts m"],
        out: Float[Tensor, "B D"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """``base + sum_j weights[:, i, j] columns[:, j]`` in part ``i``."""
        if not self.slices:
            return add_combination(base, columns, weights, out=out)
        made = [
            add_combination(base[:, part], columns[..., part], weights[:, i : i + 1])
            for i, part in enumerate(self.slices)
        ]
        return torch.cat(made, dim=1)


def renewed_blocks(
    new: Float[Tensor, "B D"], old: Float[Tensor, "B D"], blocks: Bool[Tensor, "B blocks"]
) -> Float[Tensor, "B D"]:
    """``old`` with the chosen blocks of ``new``, written into the memory of ``old`` unless autograd records."""
    count = blocks.shape[1]
    one, other = new.unflatten(1, (count, -1)), old.unflatten(1, (count, -1))
    out = None if torch.is_grad_enabled() else other
    chosen: Tensor = torch.where(blocks.unsqueeze(2), one, other, out=out)
    return chosen.flatten(1)
