"""History: the last ``m`` columns of a quasi-Newton method, per row, newest first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["History"]


@dataclass(frozen=True)
class History:
    """At most ``m`` groups of columns, each ``(B, m, D)``, kept in a ring.

    Pushing overwrites the oldest slot in place, or makes new tensors while gradients flow. ``valid`` says which
    slots of which row hold a column; ``order`` lists the slots from the newest to the oldest.
    """

    columns: tuple[Float[Tensor, "B m D"], ...]
    valid: Bool[Tensor, "B m"]
    order: tuple[int, ...]

    @classmethod
    def empty(cls, like: Float[Tensor, "B D"], memory: int, groups: int) -> History:
        rows, size = like.shape
        columns = tuple(like.new_zeros(rows, memory, size) for _ in range(groups))
        valid = torch.zeros(rows, memory, dtype=torch.bool, device=like.device)
        return cls(columns, valid, tuple(range(memory)))

    @property
    def newest(self) -> int:
        """Slot of the newest column."""
        return self.order[0]

    @property
    def next(self) -> int:
        """Slot that the next push overwrites: that of the oldest column."""
        return self.order[-1]

    def push(self, *vectors: Float[Tensor, "B D"], valid: Bool[Tensor, " B"]) -> History:
        """Store one vector per group in the oldest slot; rows not in ``valid`` store nothing."""
        return self._stored([_put(g, self.next, v, valid) for g, v in zip(self.columns, vectors, strict=True)], valid)

    def push_differences(
        self, *pairs: tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]], valid: Bool[Tensor, " B"]
    ) -> History:
        """Store ``pair[0] - pair[1]`` per group in the oldest slot, subtracting straight into its memory."""
        stored = []
        for group, (new, old) in zip(self.columns, pairs, strict=True):
            target = None if torch.is_grad_enabled() else group[:, self.next]
            stored.append(_put(group, self.next, torch.sub(new, old, out=target), valid))
        return self._stored(stored, valid)

    def forget(self, rows: Bool[Tensor, " B"]) -> History:
        """Without the columns of ``rows``."""
        return History(self.columns, self.valid & ~rows.unsqueeze(1), self.order)

    def _stored(self, columns: list[Tensor], valid: Tensor) -> History:
        mask = self.valid.clone()
        mask[:, self.next] = valid
        return History(tuple(columns), mask, (self.next, *self.order[:-1]))


def _put(group: Tensor, slot: int, vector: Tensor, valid: Tensor) -> Tensor:
    empty = ~valid.unsqueeze(1)
    if torch.is_grad_enabled():
        kept = vector.masked_fill(empty, 0.0).unsqueeze(1)
        return torch.cat([group[:, :slot], kept, group[:, slot + 1 :]], dim=1)
    group[:, slot].copy_(vector).masked_fill_(empty, 0.0)
    return group
