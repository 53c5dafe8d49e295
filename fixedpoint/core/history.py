"""The memory of quasi-Newton methods: the last ``m`` columns of every row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.small import where
from fixedpoint.core.transfer import to_device

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
        Shape ``(B, m)``, bool: the slots that hold a column of the row. A tensor, or an array if the solver makes its
        decisions on the host; :attr:`valid` and what methods take are then arrays, too.
    pushed
        Number of pushes so far.
    """

    storage: tuple[Float[Tensor, "B held D"], ...]
    mask: Any
    pushed: int = 0

    @classmethod
    def empty(cls, like: Float[Tensor, "B D"], memory: int, groups: int, on_host: bool = False) -> History:
        """Return a history without columns: ``groups`` groups of at most ``memory`` columns shaped like ``like``.

        With ``on_host`` its mask is an array on the host.
        """
        rows, size = like.shape
        begun = 0 if torch.is_grad_enabled() else memory
        storage = tuple(like.new_zeros(rows, begun, size) for _ in range(groups))
        if on_host:
            return cls(storage, np.zeros((rows, memory), dtype=np.bool_))
        return cls(storage, torch.zeros(rows, memory, dtype=torch.bool, device=like.device))

    @property
    def memory(self) -> int:
        """``m``: the largest number of columns."""
        memory: int = self.mask.shape[1]
        return memory

    @property
    def start(self) -> int:
        """The first slot in use; ``m`` while none is."""
        return max(self.memory - self.pushed, 0)

    @property
    def columns(self) -> tuple[Float[Tensor, "B used D"], ...]:
        """The columns in use, for each group a tensor ``(B, used, D)``."""
        first = self._place(self.start)
        return tuple(group.narrow(1, first, group.shape[1] - first) if first else group for group in self.storage)

    @property
    def valid(self) -> Any:
        """Shape ``(B, used)``, bool: the columns in use that hold a column of the row."""
        return self.mask[:, self.start :]

    @property
    def surviving(self) -> Any:
        """Shape ``(B, used)``, bool: the valid columns that will remain after the next push overwrites the oldest."""
        kept = _copied(self.mask)
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
        newest, used = self.newest, self.memory - self.start
        return (*range(newest, used), *range(newest)) if used else ()

    def room(self, group: int) -> Float[Tensor, "B D"] | None:
        """Return the memory of the column that the next push overwrites, for the new one; None while gradients flow."""
        return None if self._anew else self.storage[group][:, self._place(self._next)]

    def push(self, *vectors: Float[Tensor, "B D"], valid: Any) -> History:
        """Return the history with one vector per group in place of the oldest; rows not in ``valid`` store zero."""
        return self._stored([self._put(g, v, valid) for g, v in zip(self.storage, vectors, strict=True)], valid)

    def push_differences(self, *pairs: tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]], valid: Any) -> History:
        """Store ``pair[0] - pair[1]`` per group in place of the oldest column, subtracting directly into its memory.

        Rows not in ``valid`` store their difference too. It is used with weight 0, so it must be finite in rows that
        are still running.
        """
        if self._anew:
            stored = [self._put(group, new - old, valid) for group, (new, old) in zip(self.storage, pairs, strict=True)]
            return self._stored(stored, valid)
        place = self._place(self._next)
        for group, (new, old) in zip(self.storage, pairs, strict=True):
            torch.sub(new, old, out=group.select(1, place))
        return self.noted(valid)

    def noted(self, valid: Any) -> History:
        """Return the history after a push that has been written into its memory already."""
        return self._stored(self.storage, valid)

    def push_scaled(self, *pairs: tuple[Float[Tensor, "B D"], Float[Tensor, " B"]], valid: Any) -> History:
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
                torch.mul(vector, column, out=group.select(1, self._place(self._next)))
                stored.append(group)
        return self._stored(stored, valid)

    def set_aside(self) -> tuple[Any, ...]:
        """Return copies of the columns that the next push overwrites, one per group, and the mask of their rows."""
        place = self._place(self._next)
        columns = [
            group.new_zeros(len(group), group.shape[2]) if place < 0 else group[:, place].clone()
            for group in self.storage
        ]
        return (*columns, _copied(self.mask[:, self._next]))

    def put_back(self, rows: Any, aside: tuple[Any, ...]) -> History:
        """Undo the last push in ``rows``: return the history with the columns that were set aside before it."""
        slot = self.memory - 1 - (self.pushed - 1) % self.memory
        place = self._place(slot)
        for group, column in zip(self.storage, aside[:-1], strict=True):
            group[:, place] = torch.where(_column(rows, group), column, group[:, place])
        mask = _copied(self.mask)
        mask[:, slot] = where(rows, aside[-1], mask[:, slot])
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

    def select_rows(self, index: Int[Tensor, " k"], rows: NDArray[np.int64] | None = None) -> History:
        """Return the history of some rows, ascending, moved to the front of its memory unless gradients flow."""
        if torch.is_grad_enabled():
            return self.copied_rows(index, rows)
        count = len(index)
        for group in self.storage:
            # The next slot may have been written already, before the loop knew which rows go on.
            for place in range(max(self._place(self.start) - 1, 0), group.shape[1]):
                group[:count, place] = group[index, place]
        return replace(
            self, storage=tuple(group[:count] for group in self.storage), mask=_taken(self.mask, index, rows)
        )

    def copied_rows(self, index: Int[Tensor, " k"], rows: NDArray[np.int64] | None = None) -> History:
        """Return the history of some rows in memory of its own."""
        storage = tuple(group.index_select(0, index) for group in self.storage)
        return replace(self, storage=storage, mask=_taken(self.mask, index, rows))

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
        masks = [each.mask for each in several]
        mask = torch.cat(masks) if isinstance(first.mask, Tensor) else np.concatenate(masks)
        return cls(storage, _taken(mask, order), first.pushed)

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
        return History(self.storage, _rolled(self.mask, -turned), memory)

    def forget(self, rows: Any) -> History:
        """Return the history without the columns of ``rows``."""
        return replace(self, mask=self.mask & ~_host_of(rows, self.mask)[:, None])

    def forget_oldest(self, rows: Any, part: float) -> History:
        """Return the history without the fraction ``part`` of the columns of ``rows``, the oldest; the newest stays."""
        if self.start == self.memory:
            return self
        aged = _rolled(self.valid, -self.newest)  # from the newest to the oldest
        rank = aged.cumsum(1)
        kept = ((1.0 - part) * rank[:, -1:]) // 1.0
        kept = where(kept < 1.0, 1.0, kept)
        mask = _copied(self.mask)
        mask[:, self.start :] = _rolled(aged & ((rank <= kept) | ~_host_of(rows, mask)[:, None]), self.newest)
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

    def _put(self, group: Tensor, vector: Tensor, valid: Any) -> Tensor:
        """Return the storage of a group with ``vector`` in the next slot, zero in rows not in ``valid``."""
        place, empty = self._place(self._next), ~_column(valid, group)
        if not self._anew:
            group[:, place].copy_(vector).masked_fill_(empty, 0.0)
            return group
        kept = vector.masked_fill(empty, 0.0).unsqueeze(1)
        if place < 0:
            return torch.cat([kept, group], dim=1)
        before, _, after = group.split([place, 1, group.shape[1] - place - 1], dim=1)
        return torch.cat([before, kept, after], dim=1)

    def _stored(self, storage: Sequence[Tensor], valid: Any) -> History:
        """Return the history after a push, which has written ``storage``."""
        mask = _copied(self.mask)
        mask[:, self._next] = valid
        return History(tuple(storage), mask, self.pushed + 1)


def _copied(mask: Any) -> Any:
    return mask.clone() if isinstance(mask, Tensor) else mask.copy()


def _rolled(mask: Any, by: int) -> Any:
    return mask.roll(by, 1) if isinstance(mask, Tensor) else np.roll(mask, by, axis=1)


def _taken(mask: Any, index: Tensor, rows: NDArray[np.int64] | None = None) -> Any:
    if isinstance(mask, Tensor):
        return mask[index]
    return mask[index.cpu().numpy() if rows is None else rows]


def _host_of(rows: Any, mask: Any) -> Any:
    """Return rows as an array where the mask is one."""
    return rows.cpu().numpy() if isinstance(rows, Tensor) and not isinstance(mask, Tensor) else rows


def _column(rows: Any, like: Tensor) -> Tensor:
    """Return rows as a column on the device of a tensor."""
    return (rows if isinstance(rows, Tensor) else to_device(rows, like.device)).unsqueeze(1)
