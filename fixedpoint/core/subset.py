"""Row compaction: dropping finished rows from the batch of a running solve.

Rows finish at different rounds. A problem that declares ``HasTake`` omits finished rows from its evaluations. Row
compaction also reduces the overhead of a round, that is residuals, norms and the solver's history: the loop continues
with an evaluator, a judge and a solver state of the running rows only. At the end, counts, traces and answers are
written back to their places among all rows. Each row is computed as before, so that its answer is the same bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.problem import HasTake
from fixedpoint.core.transfer import to_device

__all__ = ["RowSubset", "copy_rows", "is_small", "join_rows", "select_rows"]

# Compact once at most this fraction of the rows is running. Compaction moves histories, so it must not happen often.
_SHARE = 0.5


class RowSubset:
    """The rows of a solve that are still running, with an evaluator of their own.

    Parameters
    ----------
    parent
        The evaluator of all rows.
    rows
        Shape ``(k,)``, int64: indices of the running rows, ascending.

    Attributes
    ----------
    f
        The evaluator of these rows. Its count of rounds starts at that of ``parent``.
    """

    def __init__(self, parent: Evaluator, rows: NDArray[np.int64]) -> None:
        assert isinstance(parent.problem, HasTake)  # the loop has checked it
        self.parent, self.rows = parent, rows
        self.index = to_device(rows, parent.layout.device)
        self.f = Evaluator(parent.problem.take(self.index), parent.yardstick.take(rows), parent.max_batch)
        self.f.limit, self.f.tracks_best = parent.limit, parent.tracks_best
        self.f.reads_numbers = parent.reads_numbers
        self.f.counts.rounds = parent.counts.rounds
        self.f.learn(parent)
        known = parent.known
        self.f.recall(None if known is None else select_rows(known, self.index, rows))
        parent.give_up_memory()

    @property
    def evaluations(self) -> NDArray[np.int64]:
        """Shape ``(B,)``, int64: evaluations of all rows of the solve so far."""
        found = self.parent.counts.evaluations.copy()
        found[self.rows] += self.f.counts.evaluations
        return found

    def widened(self, state: Float[Tensor, "k D"]) -> Float[Tensor, "B D"]:
        """Return a value of these rows, widened to all rows: finished rows have their final value."""
        known = self.parent.known
        assert known is not None  # at least one row has finished
        return known.fz.index_copy(0, self.index, state)

    def give_back(self) -> None:
        """Write counts, traces and answers of these rows back to the evaluator of all rows."""
        parent, part = self.parent, self.f
        parent.learn(part)
        parent.counts.rounds = part.counts.rounds
        parent.counts.calls += part.counts.calls
        parent.counts.computed += part.counts.computed
        parent.counts.evaluations[self.rows] += part.counts.evaluations
        parent.counts.products[self.rows] += part.counts.products
        if part.errors:
            parent.errors.extend(self._columns(part.errors))
            parent.relative.extend(self._columns(part.relative))
            parent.judged_after.extend(part.judged_after)
        known, answer = parent.known, part.known
        if known is not None and answer is not None:
            parent.recall(known.with_rows(self.index, self.rows, answer))

    def _columns(self, told: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        """Return the traces of these rows, widened to all rows with NaN."""
        wide = np.full((len(told), self.parent.layout.rows), np.nan)
        wide[:, self.rows] = told
        return list(wide)


def is_small(running: NDArray[np.bool_]) -> bool:
    """Whether so few rows are running that compaction pays; false if none is."""
    return bool(0 < running.sum() <= _SHARE * len(running))


def select_rows(value: Any, index: Tensor, rows: NDArray[np.int64] | None = None) -> Any:
    """Select rows of every tensor and array in ``value``, also within dataclasses, tuples, lists and dicts.

    The first dimension of each of them must be the rows. A tensor that occurs several times is selected once, so that
    it stays a single tensor. Histories are moved within their own memory unless gradients flow. ``rows`` are the
    indices on the host, if they are known there.
    """
    return _changed([value], _Selection(index, rows, copies=False), {})


def copy_rows(value: Any, index: Tensor, rows: NDArray[np.int64] | None = None) -> Any:
    """Copy rows of every tensor in ``value`` as :func:`select_rows` does, histories into memory of their own."""
    return _changed([value], _Selection(index, rows, copies=True), {})


def join_rows(values: Sequence[Any], order: Tensor) -> Any:
    """Return one value with the rows of several of one structure, one after another, and then in this order."""
    return _changed(values, _Junction(order), {})


class HasRows(Protocol):
    """What keeps the rows of its tensors elsewhere than in their first dimension, and moves them itself."""

    def select_rows(self, index: Tensor, rows: NDArray[np.int64]) -> Self: ...
    def copied_rows(self, index: Tensor, rows: NDArray[np.int64]) -> Self: ...
    @classmethod
    def joined(cls, several: Sequence[Self], order: Tensor) -> Self: ...


class _Selection:
    """Selects rows."""

    def __init__(self, index: Tensor, rows: NDArray[np.int64] | None, copies: bool) -> None:
        self.index, self.copies = index, copies
        self._rows = rows

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows on the host; the host waits for the device if they are not known there."""
        if self._rows is None:
            self._rows = self.index.cpu().numpy()
        return self._rows

    def tensors(self, values: Sequence[Tensor]) -> Tensor:
        return values[0].index_select(0, self.index)

    def arrays(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return values[0][self.rows]

    def others(self, values: Sequence[Any]) -> Any:
        one = values[0]
        return one.copied_rows(self.index, self.rows) if self.copies else one.select_rows(self.index, self.rows)


class _Junction:
    """Joins rows of several values."""

    def __init__(self, order: Tensor) -> None:
        self.order = order

    def tensors(self, values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values)).index_select(0, self.order)

    def arrays(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        joined: NDArray[Any] = np.concatenate(list(values))[self.order.cpu().numpy()]
        return joined

    def others(self, values: Sequence[Any]) -> Any:
        return type(values[0]).joined(values, self.order)


def _changed(values: Sequence[Any], how: _Selection | _Junction, known: dict[int, Any]) -> Any:
    """Put what becomes of its tensors in place of a value, or of several of one structure.

    ``known`` maps the id of a value to what became of it.
    """
    value = values[0]
    if id(value) in known:
        return known[id(value)]

    def each(parts: Sequence[Any]) -> Any:
        return _changed(parts, how, known)

    found: Any = value
    if isinstance(value, Tensor):
        found = how.tensors(values)
    elif isinstance(value, np.ndarray):
        found = how.arrays(values)
    elif hasattr(value, "copied_rows"):
        found = how.others(values)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        parts = {name: each([getattr(one, name) for one in values]) for name in names}
        found = dataclasses.replace(value, **parts)
    elif isinstance(value, (tuple, list)):
        items = [each(parts) for parts in zip(*values, strict=True)]
        found = items if isinstance(value, list) else tuple(items)
        found = value._make(items) if hasattr(value, "_make") else found
    elif isinstance(value, dict):
        found = {key: each([one[key] for one in values]) for key in value}
    known[id(value)] = found
    return found
