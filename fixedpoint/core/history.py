"""The memory of quasi-Newton methods: the last ``m`` columns of every row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["History"]


@dataclass(frozen=True)
class History:
    """The last ``m`` columns ``(B, D)`` of one or several groups, in a ring buffer.

    A push overwrites the oldest column in place, or makes new tensors while gradients flow. The buffer is filled from
    its end, so that the columns in use are always one slice of the storage. While gradients flow they are the whole
    storage, since the backward pass of a slice fills a tensor of the whole size with zeros.

    Attributes
    ----------
    storage
        For each group a tensor ``(B, held, D)``; ``held`` is ``m``, or the number of columns so far while gradients
        flow.
    mask
        Shape ``(B, m)``, bool: the slots that hold a column of the row.
    pushed
        Number of pushes so far.
    """

    storage: tuple[Float[Tensor, "B held D"], ...]
    mask: Bool[Tensor, "B m"]
    pushed: int = 0

    @classmethod
    def empty(cls, like: Float[Tensor, "B D"], memory: int, groups: int) -> History:
        """Return a history without columns: ``groups`` groups of at most ``memory`` columns shaped like ``like``."""
        rows, size = like.shape
        begun = 0 if torch.is_grad_enabled() else memory
        storage = tuple(like.new_zeros(rows, begun, size) for _ in range(groups))
        return cls(storage, torch.zeros(rows, memory, dtype=torch.bool, device=like.device))

    @property
    def memory(self) -> int:
        """``m``: the largest number of columns."""
        return self.mask.shape[1]

    @property
    def start(self) -> int:
        """The first slot in use; ``m`` while none is."""
        return max(self.memory - self.pushed, 0)

    @property
    def columns(self) -> tuple[Float[Tensor, "B used D"], ...]:
        """The columns in use, for each group a tensor ``(B, used, D)``."""
        first = self._place(self.start)
        return tuple(group[:, first:] if first else group for group in self.storage)

    @property
    def valid(self) -> Bool[Tensor, "B used"]:
        """Shape ``(B, used)``, bool: the columns in use that hold a column of the row."""
        return self.mask[:, self.start :]

    @property
    def surviving(self) -> Bool[Tensor, "B used"]:
        """Shape ``(B, used)``, bool: the valid columns that will remain after the next push overwrites the oldest."""
        kept = self.mask.clone()
        kept[:, self._next] = False
        return kept[:, self.start :]

    @property
    def newest(self) -> int:
        """Position of the newest column among those in use."""
        return (self._next + 1) % self.memory - self.start

    @property
    def oldest(self) -> int | None:
        """Position of the column that the next push overwrites; None while there are free slots."""
        return self._next if self.start == 0 else None

    @property
    def order(self) -> tuple[int, ...]:
        """Positions from the newest to the oldest."""
        used = self.memory - self.start
        return tuple((self.newest + age) % used for age in range(used))

    def room(self, group: int) -> Float[Tensor, "B D"] | None:
        """Return the memory of the column that the next push overwrites, for the new one; None while gradients flow."""
        return None if self._anew else self.storage[group][:, self._place(self._next)]

    def push(self, *vectors: Float[Tensor, "B D"], valid: Bool[Tensor, " B"]) -> History:
        """Return the history with one vector per group in place of the oldest; rows not in ``valid`` store zero."""
        return self._stored([self._put(g, v, valid) for g, v in zip(self.storage, vectors, strict=True)], valid)

    def push_differences(
        self, *pairs: tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]], valid: Bool[Tensor, " B"]
    ) -> History:
        """Store ``pair[0] - pair[1]`` per group in place of the oldest column, subtracting directly into its memory.

        Rows not in ``valid`` store their difference too. It is used with weight 0, so it must be finite in rows that
        are still running.
        """
        stored = []
        for group, (new, old) in zip(self.storage, pairs, strict=True):
            if self._anew:
                stored.append(self._put(group, new - old, valid))
            else:
                torch.sub(new, old, out=group[:, self._place(self._next)])
                stored.append(group)
        return self._stored(stored, valid)

    def push_scaled(
        self, *pairs: tuple[Float[Tensor, "B D"], Float[Tensor, " B"]], valid: Bool[Tensor, " B"]
    ) -> History:
        """Store ``pair[1] * pair[0]`` per group in place of the oldest column, multiplying directly into its memory.

        The product is taken in single precision at least, since the factors may exceed the range of half precision.
        Rows not in ``valid`` are treated as in :meth:`push_differences`.
        """
        stored = []
        for group, (vector, factor) in zip(self.storage, pairs, strict=True):
            wide = torch.promote_types(vector.dtype, torch.float32)
            column = factor.to(wide).unsqueeze(1)
            if self._anew or wide != vector.dtype:
                stored.append(self._put(group, (vector.to(wide) * column).to(vector.dtype), valid))
            else:
                torch.mul(vector, column, out=group[:, self._place(self._next)])
                stored.append(group)
        return self._stored(stored, valid)

    def set_aside(self) -> tuple[Tensor, ...]:
        """Return copies of the columns that the next push overwrites, one per group, and the mask of their rows."""
        place = self._place(self._next)
        columns = [
            group.new_zeros(len(group), group.shape[2]) if place < 0 else group[:, place].clone()
            for group in self.storage
        ]
        return (*columns, self.mask[:, self._next].clone())

    def put_back(self, rows: Bool[Tensor, " B"], aside: tuple[Tensor, ...]) -> History:
        """Undo the last push in ``rows``: return the history with the columns that were set aside before it."""
        slot = self.memory - 1 - (self.pushed - 1) % self.memory
        place = self._place(slot)
        for group, column in zip(self.storage, aside[:-1], strict=True):
            group[:, place] = torch.where(rows.unsqueeze(1), column, group[:, place])
        mask = self.mask.clone()
        mask[:, slot] = torch.where(rows, aside[-1], mask[:, slot])
        return replace(self, mask=mask)

    def slid(self, move: Callable[[Tensor], Tensor]) -> History:
        """Return the history with all columns moved by ``move``; one after the other, to limit the memory used.

        Parameters
        ----------
        move
            Takes a column ``(B, D)`` and returns it with its entries at new places, in place unless gradients flow.
        """
        if torch.is_grad_enabled():
            if self.start == self.memory:
                return self
            moved = [torch.stack([move(column) for column in group.unbind(1)], 1) for group in self.storage]
            return replace(self, storage=tuple(moved))
        for group in self.storage:
            for place in range(self._place(self.start), group.shape[1]):
                move(group[:, place])
        return self

    def select_rows(self, index: Int[Tensor, " k"]) -> History:
        """Return the history of some rows, ascending, moved to the front of its memory unless gradients flow."""
        if torch.is_grad_enabled():
            return replace(
                self, storage=tuple(group.index_select(0, index) for group in self.storage), mask=self.mask[index]
            )
        count = len(index)
        for group in self.storage:
            for place in range(self._place(self.start), group.shape[1]):
                group[:count, place] = group[index, place]
        return replace(self, storage=tuple(group[:count] for group in self.storage), mask=self.mask[index])

    def copied_rows(self, index: Int[Tensor, " k"]) -> History:
        """Return the history of some rows in memory of its own."""
        return replace(
            self, storage=tuple(group.index_select(0, index) for group in self.storage), mask=self.mask[index]
        )

    @classmethod
    def joined(cls, several: Sequence[History], order: Int[Tensor, " k"]) -> History:
        """Return one history with the rows of several, one after another, and then in this order.

        Raises
        ------
        ValueError
            If their columns are not at the same places.
        """
        first = several[0]
        if any(each.pushed != first.pushed for each in several):
            raise ValueError(f"histories after {', '.join(str(each.pushed) for each in several)} pushes do not join")
        groups = zip(*(each.storage for each in several), strict=True)
        storage = tuple(torch.cat(group).index_select(0, order) for group in groups)
        return cls(storage, torch.cat([each.mask for each in several])[order], first.pushed)

    @property
    def turned(self) -> int:
        """By how many slots the columns have to move, each to a lower one, for the newest to be in the first slot."""
        return (self.start + self.newest) % self.memory

    def in_order(self) -> History:
        """Move the columns, within their memory, so that the newest is in the first slot, as if after ``m`` pushes.

        The place of a column then depends on its age alone. Slots without a column are masked.
        """
        turned, memory = self.turned, self.memory
        for group in self.storage:
            for first in range(math.gcd(turned, memory) if turned else 0):
                place, kept = first, group[:, first].clone()
                while (source := (place + turned) % memory) != first:
                    group[:, place] = group[:, source]
                    place = source
                group[:, place] = kept
        return History(self.storage, self.mask.roll(-turned, 1), memory)

    def forget(self, rows: Bool[Tensor, " B"]) -> History:
        """Return the history without the columns of ``rows``."""
        return replace(self, mask=self.mask & ~rows.unsqueeze(1))

    def forget_oldest(self, rows: Bool[Tensor, " B"], part: float) -> History:
        """Return the history without the fraction ``part`` of the columns of ``rows``, the oldest; the newest stays."""
        if self.start == self.memory:
            return self
        aged = self.valid.roll(-self.newest, 1)  # from the newest to the oldest
        rank = aged.cumsum(dim=1)
        kept = ((1.0 - part) * rank[:, -1:]).floor().clamp(min=1.0)
        mask = self.mask.clone()
        mask[:, self.start :] = (aged & ((rank <= kept) | ~rows.unsqueeze(1))).roll(self.newest, 1)
        return replace(self, mask=mask)

    @property
    def _next(self) -> int:
        """Slot that the next push writes to."""
        return self.memory - 1 - self.pushed % self.memory

    def _place(self, slot: int) -> int:
        """Return the index of a slot in the storage, whose last column is the last slot; -1 before it exists."""
        return slot - self.memory + self.storage[0].shape[1]

    @property
    def _anew(self) -> bool:
        """Whether the next push makes new tensors instead of writing in place."""
        return torch.is_grad_enabled() or self._place(self._next) < 0

    def _put(self, group: Tensor, vector: Tensor, valid: Tensor) -> Tensor:
        """Return the storage of a group with ``vector`` in the next slot, zero in rows not in ``valid``."""
        place, empty = self._place(self._next), ~valid.unsqueeze(1)
        if not self._anew:
            group[:, place].copy_(vector).masked_fill_(empty, 0.0)
            return group
        kept = vector.masked_fill(empty, 0.0).unsqueeze(1)
        if place < 0:
            return torch.cat([kept, group], dim=1)
        before, _, after = group.split([place, 1, group.shape[1] - place - 1], dim=1)
        return torch.cat([before, kept, after], dim=1)

    def _stored(self, storage: list[Tensor], valid: Tensor) -> History:
        """Return the history after a push, which has written ``storage``."""
        mask = self.mask.clone()
        mask[:, self._next] = valid
        return History(tuple(storage), mask, self.pushed + 1)
