"""``MergedCalls``: the network calls of a loop, recorded once and evaluated for any pairs of a step and an image.

The arguments that have an entry per row are held as tables, each different tensor once, so that a batch is gathered by
a few operations on the device, whatever its size, and without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.core.transfer import to_device
from fixedpoint_diffusion.pipelines.calls import Call, called, merged_groups
from fixedpoint_diffusion.pipelines.trees import Path, first_of, mapped

__all__ = ["MergedCalls"]


class MergedCalls:
    """One network call for every step of a loop, without the samples.

    Parameters
    ----------
    calls
        The call of every step.
    sample
        Where a call has the sample among its arguments.
    count
        The number of images in the pipeline's batch.
    dtype
        The dtype in which the pipeline gives the sample to its network: recorded calls may have a wider one.
    """

    def __init__(self, calls: Sequence[Call], sample: Path, count: int, dtype: torch.dtype) -> None:
        groups = merged_groups(calls)
        self.groups = [
            _Group.of([calls[step] for step in group], group, len(calls), sample, count, dtype) for group in groups
        ]
        self.group_of = np.empty(len(calls), dtype=np.int64)
        for number, group in enumerate(groups):
            self.group_of[group] = number

    @property
    def each(self) -> int:
        """``R``, the largest number of rows that a call has for an image."""
        return max(group.each for group in self.groups)

    def outputs(
        self, rows: Float[Tensor, "P R *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P R *out"]:
        """Return the first tensor of the networks' outputs for the rows of every pair of a step and an image."""
        if len(self.groups) == 1:
            return self.groups[0].outputs(rows, index, row)
        numbers = self.group_of[index.cpu().numpy()]
        found: Tensor | None = None
        for number in np.unique(numbers):
            places = to_device(np.flatnonzero(numbers == number), rows.device)
            part = self.groups[number].outputs(rows[places], index[places], row[places])
            found = part.new_empty(len(rows), *part.shape[1:]) if found is None else found
            found = found.index_copy(0, places, part)
        assert found is not None
        return found


@dataclass(frozen=True, eq=False)
class _Table:
    """The values of one argument, ``(U, n, ...)`` with ``n`` rows or ``(U,)`` for times, and which step has which."""

    values: Tensor
    use: Int[Tensor, " K"]


@dataclass(frozen=True, eq=False)
class _Group:
    """Calls that go into one batch."""

    first: Call
    sample: Path
    dtype: torch.dtype
    count: int
    each: int
    tables: dict[Path, _Table]

    @classmethod
    def of(
        cls, calls: Sequence[Call], steps: Sequence[int], length: int, sample: Path, count: int, dtype: torch.dtype
    ) -> _Group:
        first = calls[0]
        known = [dict(call.leaves) for call in calls]
        tables = {
            path: _table(first, [each[path] for each in known], steps, length) for path in first.per_row - {sample}
        }
        return cls(replace(first), sample, dtype, count, first.rows // count, tables)

    def outputs(self, rows: Tensor, index: Tensor, row: Tensor) -> Tensor:
        pairs = len(rows)
        # All first rows before all second ones, as the pipeline has them.
        blocks = torch.arange(self.each, device=row.device) * self.count
        places = (blocks.unsqueeze(1) + row).flatten()
        steps = index.repeat(self.each)
        given = rows.transpose(0, 1).flatten(0, 1).to(self.dtype)

        def change(path: Path, leaf: Any) -> Any:
            if path == self.sample:
                return given
            table = self.tables.get(path)
            return leaf if table is None else _gathered(table, steps, places)

        output = called(self.first.module, mapped(self.first.arguments, change))
        found: Tensor = first_of(output).unflatten(0, (self.each, pairs)).transpose(0, 1)
        return found


def _table(call: Call, values: Sequence[Any], steps: Sequence[int], length: int) -> _Table:
    """Return the table of an argument, with every different tensor once."""
    device = next(leaf.device for _, leaf in call.leaves if isinstance(leaf, Tensor))
    numbers: dict[Any, int] = {}
    use = np.zeros(length, dtype=np.int64)
    different: list[Any] = []
    for step, value in zip(steps, values, strict=True):
        key = id(value) if isinstance(value, Tensor) else value
        if key not in numbers:
            numbers[key] = len(different)
            different.append(value)
        use[step] = numbers[key]
    if not isinstance(different[0], Tensor):
        return _Table(torch.tensor(different, device=device), to_device(use, device))
    stacked = torch.stack(different)
    single = stacked.ndim == 2 and stacked.shape[1] == 1 < call.rows  # one timestep for all rows
    return _Table(stacked[:, 0] if single else stacked, to_device(use, device))


def _gathered(table: _Table, steps: Tensor, places: Tensor) -> Tensor:
    values = table.values
    if values.ndim == 1:
        return values[table.use[steps]]
    if values.shape[:2] == (1, 1):
        return values[0].expand(len(places), *values.shape[2:])  # nothing is multiplied that all pairs share
    if len(values) == 1:
        return values[0].index_select(0, places)
    return values.flatten(0, 1).index_select(0, table.use[steps] * values.shape[1] + places)
