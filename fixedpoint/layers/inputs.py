"""Inputs: what a cell takes beside the state, and which of it has a row for every row of the state.

A tensor whose first dimension is not the batch belongs to every row. One whose first dimension is the batch may have a
row for each of them, or may have that size by chance: a memory of sixteen tokens beside a batch of sixteen. Only who
made it knows, so it may be stated. Where nothing is stated such a tensor is taken row by row on trust, and what comes
out is held against the cell's value of all rows (``fixedpoint.core.whole``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_with_path

__all__ = ["Inputs", "Shared", "shared_paths"]

Shared = Sequence[int | str | tuple[int | str, ...]]
Path = tuple[int | str, ...]


@dataclass(frozen=True)
class Inputs:
    """The inputs of one forward pass.

    Attributes
    ----------
    positional, keywords
        As the layer was given them.
    shared
        Where inputs stand that belong to every row, as it was stated; None where nothing was.
    names
        Of the positional ones, as the cell calls them.
    """

    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]
    shared: frozenset[Path] | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, cell: nn.Module, positional: tuple[Any, ...], keywords: Mapping[str, Any], shared: frozenset[Path] | None
    ) -> Inputs:
        """The inputs of a cell."""
        return cls(positional, keywords, shared, _names(cell)[: len(positional)])

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return [leaf for leaf in tree_leaves((self.positional, dict(self.keywords))) if isinstance(leaf, Tensor)]

    def by_row(self, count: int) -> list[str]:
        """Where those stand that are taken row by row in a batch of so many, as ``shared`` would name them."""
        found: list[str] = []

        def note(path: Path, leaf: Tensor) -> Tensor:
            found.append(_words(path))
            return leaf

        self._mapped(count, note)
        return found

    def select_rows(self, rows: Int[Tensor, " k"], count: int) -> Inputs:
        """Those of some of ``count`` rows."""
        return self._mapped(count, lambda _, leaf: leaf[rows])

    def _mapped(self, count: int, change: Callable[[Path, Tensor], Tensor]) -> Inputs:
        """With something else in place of every tensor that has a row for every row."""

        def visit(keys: tuple[Any, ...], leaf: Any) -> Any:
            path = tuple(_step(key) for key in keys)
            if isinstance(leaf, Tensor) and leaf.shape[:1] == (count,) and not self._stated(path):
                return change(path, leaf)
            return leaf

        positional = tree_map_with_path(visit, self.positional)
        return replace(self, positional=positional, keywords=tree_map_with_path(visit, dict(self.keywords)))

    def _stated(self, path: Path) -> bool:
        """Whether it was said that what stands there belongs to every row."""
        if not self.shared:
            return False
        place = path[0]
        ways = [path, (self.names[place], *path[1:])] if isinstance(place, int) and place < len(self.names) else [path]
        return any(way[: len(stated)] == stated for way in ways for stated in self.shared)


def shared_paths(cell: nn.Module, shared: Shared | None) -> frozenset[Path] | None:
    """What a layer's ``shared`` states.

    Raises
    ------
    TypeError, ValueError
        For what is no position, name or path, or no input of the cell.
    """
    if shared is None:
        return None
    if isinstance(shared, str) or not isinstance(shared, Collection):
        raise TypeError(f"shared must be a list of positions, names or paths of inputs, got {shared!r}")
    known, paths = _names(cell), set()
    for each in shared:
        path = each if isinstance(each, tuple) else (each,)
        if not path or not all(isinstance(step, (int, str)) and not isinstance(step, bool) for step in path):
            raise TypeError(f"shared must be a list of positions, names or paths of inputs, got {each!r} in it")
        if isinstance(path[0], str) and known and path[0] not in known:
            raise ValueError(f"shared names {path[0]!r}, and the cell takes {', '.join(known)} beside the state")
        if isinstance(path[0], int) and path[0] < 0:
            raise ValueError(f"shared must name positions from 0, the first input beside the state, got {path[0]}")
        if isinstance(path[0], int) and known and path[0] >= len(known):
            raise ValueError(f"shared names position {path[0]}, and the cell takes {', '.join(known)} beside the state")
        paths.add(path)
    return frozenset(paths)


def _names(cell: nn.Module) -> tuple[str, ...]:
    """What a cell calls its inputs beside the state; empty where it takes whatever comes."""
    try:
        parameters = list(inspect.signature(cell.forward).parameters.values())
    except (TypeError, ValueError):  # some callables have no signature
        return ()
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters):
        return ()
    return tuple(each.name for each in parameters[1:])


def _step(key: Any) -> int | str:
    """A step into a structure as ``shared`` would have it."""
    for name in ("idx", "key", "name"):
        if hasattr(key, name):
            found: int | str = getattr(key, name)
            return found
    return str(key)


def _words(path: Path) -> str:
    return repr(path[0] if len(path) == 1 else path)
