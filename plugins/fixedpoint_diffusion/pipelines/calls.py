"""Calls of a pipeline's networks, recorded in a replay and evaluated together in one batch.

A call has ``n = R d`` rows: ``R`` for each of the pipeline's ``d`` images, such as one without and one with the prompt.
Row ``q d + i`` belongs to image ``i``. A merged batch keeps this order, all first rows before all second ones, since
some attention processors divide their batch by it.

Tensors with one entry per row are gathered for the pairs of a batch. What is shared by all rows is passed on as it is.
Calls go into one batch where everything but the gathered tensors is the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fixedpoint_diffusion.pipelines.trees import Path, leaves, mapped

__all__ = ["Call", "called", "equal_calls", "evaluated", "merged_groups"]

# Tensors that networks of diffusers share among all rows, whatever their first dimension happens to be.
_SHARED = ("txt_ids", "img_ids", "image_rotary_emb", "rotary_emb", "freqs_cis", "pos_embed", "cross_attention_kwargs")
_TIMES = ("timestep", "timesteps", "time_step", "t")


@dataclass(eq=False)
class Call:
    """One recorded call of a network.

    Attributes
    ----------
    network
        The name of the network in the pipeline.
    module
        The network.
    step
        The number of the scheduler's step that follows.
    place
        The number of the call before that step, from 0.
    arguments
        Positional arguments under their places, keyword arguments under their names.
    """

    network: str
    module: torch.nn.Module
    step: int
    place: int
    arguments: dict[str | int, Any]

    @classmethod
    def of(
        cls,
        network: str,
        module: torch.nn.Module,
        step: int,
        place: int,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Call:
        return cls(network, module, step, place, dict([*enumerate(args), *kwargs.items()]))

    @functools.cached_property
    def leaves(self) -> list[tuple[Path, Any]]:
        """All arguments, with their paths."""
        return list(leaves(self.arguments))

    @functools.cached_property
    def _shape(self) -> tuple[int, ...]:
        """The shape of the first tensor."""
        return next(tuple(leaf.shape) for _, leaf in self.leaves if isinstance(leaf, Tensor) and leaf.ndim > 1)

    @property
    def rows(self) -> int:
        """The number of rows, which is that of the first tensor."""
        return self._shape[0]

    @functools.cached_property
    def kind(self) -> tuple[object, ...]:
        """What the structure of the output depends on."""
        return self.network, self.place, self._shape, self.arguments.get("return_dict", True)

    @functools.cached_property
    def per_row(self) -> frozenset[Path]:
        """The paths of the arguments that have one entry per row, or are timesteps that may become one."""
        return frozenset(path for path, leaf in self.leaves if self._is_per_row(path, leaf))

    def change(self, change: Callable[[Path, Any], Any]) -> None:
        """Put ``change(path, leaf)`` in place of every argument; no tensor gets another shape."""
        changed = {path: change(path, leaf) for path, leaf in self.leaves}
        if any(changed[path] is not leaf for path, leaf in self.leaves):
            self.arguments = mapped(self.arguments, lambda path, _leaf: changed[path])
            del self.leaves

    def forget(self) -> None:
        """Let go of all arguments; of what kind the call is stays known."""
        _ = self.kind
        self.arguments = {}
        del self.leaves

    def is_time(self, path: Path) -> bool:
        """Whether an argument is the timestep."""
        return path[0] in _TIMES or (path == (1,) and not any(key in _TIMES for key in self.arguments))

    def _is_per_row(self, path: Path, leaf: Any) -> bool:
        if any(key in _SHARED for key in path):
            return False
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return len(leaf) == self.rows or (leaf.shape == (1,) and self.is_time(path))
        return self.is_time(path) and isinstance(leaf, (Tensor, int, float)) and not isinstance(leaf, bool)

    def run(self) -> Any:
        """Call the network as the pipeline does."""
        return called(self.module, self.arguments)


def called(module: torch.nn.Module, arguments: Mapping[str | int, Any]) -> Any:
    """Call a network with arguments by place and by name."""
    arguments = mapped(arguments, lambda _path, leaf: leaf)  # some networks empty the lists that they are given
    args = [value for key, value in arguments.items() if isinstance(key, int)]
    return module(*args, **{key: value for key, value in arguments.items() if isinstance(key, str)})


def equal_calls(one: Call, two: Call) -> bool:
    """Whether two calls have equal arguments."""
    pairs = zip(one.leaves, two.leaves, strict=True)
    return all(
        torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine is theirs or mine == theirs
        for (_, mine), (_, theirs) in pairs
    )


def merged_groups(calls: Sequence[Call]) -> list[list[int]]:
    """Return the numbers of calls that go into one batch, group by group."""
    groups: list[list[int]] = []
    for number, call in enumerate(calls):
        group = next((group for group in groups if _alike(calls[group[0]], call)), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return groups


def _alike(one: Call, other: Call) -> bool:
    if one.network != other.network or one.rows != other.rows or len(one.leaves) != len(other.leaves):
        return False
    return all(_same(one, *pair) for pair in zip(one.leaves, other.leaves, strict=True))


def _same(call: Call, one: tuple[Path, Any], other: tuple[Path, Any]) -> bool:
    (path, mine), (place, theirs) = one, other
    if path != place:
        return False
    if mine is theirs:
        return True
    if type(mine) is not type(theirs):
        return False
    if path in call.per_row:
        return not isinstance(mine, Tensor) or (mine.shape == theirs.shape and mine.dtype == theirs.dtype)
    if isinstance(mine, Tensor):
        return mine.shape == theirs.shape and mine.dtype == theirs.dtype and bool(torch.equal(mine, theirs))
    return bool(mine == theirs)


def evaluated(
    calls: Sequence[Call], images: Sequence[Sequence[int]], count: int, most: int | None
) -> list[dict[int, Any]]:
    """Evaluate calls that go into one batch, for some of the images.

    Parameters
    ----------
    calls
        The calls, all of one group.
    images
        For every call, the images that are wanted, from 0 to ``count - 1``.
    count
        The number of images in the pipeline's batch.
    most
        The largest number of rows in one batch; None: no limit.

    Returns
    -------
    list
        For every call, the output of every image: the network's own structure, with ``R`` rows in its tensors.
    """
    pairs = [(place, image) for place, wanted in enumerate(images) for image in wanted]
    each = calls[0].rows // count
    size = len(pairs) if most is None else max(most // each, 1)
    found: list[dict[int, Any]] = [{} for _ in calls]
    split, known = len(pairs) > size, 1
    for first in range(0, len(pairs), size):
        part = pairs[first : first + size]
        arguments = _gathered(calls, part, count, each)
        # The first call stays: the others are compared with it.
        later = pairs[first + size][0] if first + size < len(pairs) else len(calls)
        for place in range(known, later):
            calls[place].forget()
        known = max(known, later)
        if torch.is_grad_enabled() and split:
            # The activations of one part at a time: they are computed again when a gradient passes through.
            output = checkpoint(called, calls[0].module, arguments, use_reentrant=False)
        else:
            output = called(calls[0].module, arguments)
        arguments = {}
        for number, (place, image) in enumerate(part):
            found[place][image] = mapped(output, _Rows(number, len(part), each))
    return found


class _Rows:
    """Takes the rows of one pair from what a merged batch returned."""

    def __init__(self, number: int, pairs: int, each: int) -> None:
        self.number, self.pairs, self.each = number, pairs, each

    def __call__(self, path: Path, leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == self.pairs * self.each:
            return leaf[self.number :: self.pairs]
        return leaf


def _gathered(calls: Sequence[Call], pairs: Sequence[tuple[int, int]], count: int, each: int) -> dict[str | int, Any]:
    """Return the arguments of a merged batch."""
    first, places = calls[0], sorted({place for place, _ in pairs})
    tables = [dict(calls[place].leaves) for place in places]
    number = {place: number for number, place in enumerate(places)}
    # The number of each row's call, and its row there.
    rows = [(number[place], image + block * count) for block in range(each) for place, image in pairs]
    whole = len(places) == 1 and rows == [(0, row) for row in range(first.rows)]

    def change(path: Path, leaf: Any) -> Any:
        if path not in first.per_row:
            return leaf
        values = [table[path] for table in tables]
        if isinstance(leaf, Tensor) and leaf.shape == (1,) and first.rows > 1:
            values = [value[0] for value in values]  # one timestep for all rows
            leaf = values[0]
        if not isinstance(leaf, Tensor) or leaf.ndim == 0:
            times = [values[call] for call, _ in rows]
            return torch.stack(times) if isinstance(leaf, Tensor) else torch.tensor(times, device=_device(first))
        if all(value is leaf for value in values):
            return _selected(leaf, [row for _, row in rows])
        if whole:
            return values[0]  # one whole call, as the pipeline makes it
        return torch.stack([values[call][row] for call, row in rows])

    return dict(mapped(first.arguments, change))


def _selected(values: Tensor, rows: list[int]) -> Tensor:
    """Return some rows; without a copy where all are one."""
    if rows == list(range(len(values))):
        return values
    if len(set(rows)) == 1:
        return values[rows[0] : rows[0] + 1].expand(len(rows), *values.shape[1:])
    return values[torch.tensor(rows, device=values.device)]


def _device(call: Call) -> torch.device:
    return next(leaf.device for _, leaf in call.leaves if isinstance(leaf, Tensor))
