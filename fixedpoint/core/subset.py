"""RowSubset: the rows of a solve that are still running, gone on with by themselves.

Rows end one after another. Leaving those that have ended out of the evaluations is what a problem can do (``HasTake``);
what a round costs beside its evaluation, the residuals, the norms, a solver's history, is cut down here: the loop goes
on with an evaluator, a judge and a solver's state of the running rows alone, and in the end everything has the place it
would have had. No row is computed in another way, so that its answer is the same bit for bit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.history import History
from fixedpoint.core.problem import HasTake
from fixedpoint.core.transfer import to_device

__all__ = ["RowSubset", "is_small", "select_rows"]

# Go on with the running rows once they are so many of those there are: histories are moved then.
_SHARE = 0.5


class RowSubset:
    """Some rows of a solve, to go on with.

    Parameters
    ----------
    parent
        The evaluator of all rows.
    rows
        Shape ``(k,)``: which these are, ascending.

    Attributes
    ----------
    f
        The evaluator of these rows; it counts rounds from where the whole stands.
    """

    def __init__(self, parent: Evaluator, rows: NDArray[np.int64]) -> None:
        assert isinstance(parent.problem, HasTake)  # asked before
        self.parent, self.rows = parent, rows
        self.index = to_device(rows, parent.layout.device)
        self.f = Evaluator(parent.problem.take(self.index), parent.yardstick.take(self.index), parent.max_batch)
        self.f.limit, self.f.tracks_best = parent.limit, parent.tracks_best
        self.f.counts.rounds = parent.counts.rounds
        self.f.learn(parent)
        known = parent.known
        self.f.recall(None if known is None else select_rows(known, self.index))
        parent.give_up_memory()

    @property
    def evaluations(self) -> NDArray[np.int64]:
        """Shape ``(B,)``: of all rows of the whole, so far."""
        found = self.parent.counts.evaluations.copy()
        found[self.rows] += self.f.counts.evaluations
        return found

    def widened(self, state: Float[Tensor, "k D"]) -> Float[Tensor, "B D"]:
        """With the values that the rows of the whole have ended with around it."""
        known = self.parent.known
        assert known is not None  # some row has ended
        return known.fz.index_copy(0, self.index, state)

    def give_back(self) -> None:
        """Put all that has been found and spent where it belongs in the parent."""
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
            parent.recall(known.with_rows(self.index, answer))

    def _columns(self, told: list[Tensor]) -> tuple[Tensor, ...]:
        """What was told of these rows round by round, NaN for all others."""
        narrow = torch.stack(told)
        wide = narrow.new_full((len(told), self.parent.layout.rows), torch.nan)
        return wide.index_copy_(1, self.index, narrow).unbind()


def is_small(running: NDArray[np.bool_]) -> bool:
    """Whether so few of the rows are running that it is worth going on with them alone."""
    return bool(0 < running.sum() <= _SHARE * len(running))


def select_rows(value: Any, index: Tensor) -> Any:
    """The rows of whatever is kept by row: of every tensor in it, in dataclasses, tuples, lists and dicts.

    A tensor that occurs several times is taken once, so that what was one tensor still is. Histories are moved within
    their own memory unless gradients flow.
    """
    return _select_rows(value, index, {})


def _select_rows(value: Any, index: Tensor, known: dict[int, Any]) -> Any:
    if id(value) in known:
        return known[id(value)]
    found: Any = value
    if isinstance(value, Tensor):
        found = value.index_select(0, index)
    elif isinstance(value, History):
        found = value.select_rows(index)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: _select_rows(getattr(value, each.name), index, known) for each in dataclasses.fields(value)}
        found = dataclasses.replace(value, **parts)
    elif isinstance(value, tuple):
        items = [_select_rows(item, index, known) for item in value]
        found = value._make(items) if hasattr(value, "_make") else tuple(items)
    elif isinstance(value, list):
        found = [_select_rows(item, index, known) for item in value]
    elif isinstance(value, dict):
        found = {key: _select_rows(item, index, known) for key, item in value.items()}
    known[id(value)] = found
    return found
