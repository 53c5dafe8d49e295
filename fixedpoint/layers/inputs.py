"""Inputs: the inputs of a cell after the state, and which of them have one row for each row of the state.

A tensor whose first dimension is not the batch size belongs to every row. A tensor whose first dimension is the batch
size may have one row for each row of the state, or may have that size by chance: a memory of sixteen tokens with a
batch of sixteen. Only the user knows, so the user may state it. If nothing is stated, such a tensor is taken row by row
without knowing that this is right, and the answer is then compared with the cell's value for all rows together
(``fixedpoint.core.whole``).
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
"""Inputs that belong to every row: positions from 0, names, or paths into a structure."""

Path = tuple[int | str, ...]
"""The position or name of an input, followed by the indices and keys that lead to a tensor in it."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of one forward pass.

    Attributes
    ----------
    positional, keywords
        The inputs as the layer was given them.
    shared
        Paths of the inputs that the user stated to belong to every row; None if nothing was stated.
    names
        The cell's parameter names of the positional inputs; empty if they are not known.
    """

    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]
    shared: frozenset[Path] | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, cell: nn.Module, positional: tuple[Any, ...], keywords: Mapping[str, Any], shared: frozenset[Path] | None
    ) -> Inputs:
        """The inputs of one call of a cell, with the names that the cell's signature gives them."""
        return cls(positional, keywords, shared, _names(cell)[: len(positional)])

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the inputs, in order."""
        return [leaf for leaf in tree_leaves((self.positional, dict(self.keywords))) if isinstance(leaf, Tensor)]

    def by_row(self, count: int) -> list[str]:
        """The inputs that are taken row by row in a batch of ``count`` rows, written as in ``shared``."""
        found: list[str] = []

        def note(path: Path, leaf: Tensor) -> Tensor:
            found.append(_words(path))
            return leaf

        self._mapped(count, note)
        return found

    def select_rows(self, rows: Int[Tensor, " k"], count: int) -> Inputs:
        """The inputs of some of ``count`` rows; ``rows`` has shape ``(k,)``, int64."""
        return self._mapped(count, lambda _, leaf: leaf[rows])

    def _mapped(self, count: int, change: Callable[[Path, Tensor], Tensor]) -> Inputs:
        """Replace every tensor that is taken row by row by ``change(path, tensor)``."""

        def visit(keys: tuple[Any, ...], leaf: Any) -> Any:
            path = tuple(_step(key) for key in keys)
            if isinstance(leaf, Tensor) and leaf.shape[:1] == (count,) and not self._stated(path):
                return change(path, leaf)
            return leaf

        positional = tree_map_with_path(visit, self.positional)
        return replace(self, positional=positional, keywords=tree_map_with_path(visit, dict(self.keywords)))

    def _stated(self, path: Path) -> bool:
        """Whether the user stated that the input at this path belongs to every row."""
        if not self.shared:
            return False
        place = path[0]
        # An input that was given by position may have been stated by its position or by its name.
        ways = [path, (self.names[place], *path[1:])] if isinstance(place, int) and place < len(self.names) else [path]
        return any(way[: len(stated)] == stated for way in ways for stated in self.shared)


def shared_paths(cell: nn.Module, shared: Shared | None) -> frozenset[Path] | None:
    """Check a layer's ``shared`` argument and return it as a set of paths; None if nothing is stated.

    Raises
    ------
    TypeError
        If ``shared`` or one of its items is not a position, a name or a path.
    ValueError
        If an item names no input of the cell.
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
    """The cell's names of its inputs after the state; empty if it takes any inputs or has no signature."""
    try:
        parameters = list(inspect.signature(cell.forward).parameters.values())
    except (TypeError, ValueError):  # some callables have no signature
        return ()
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters):
        return ()
    return tuple(each.name for each in parameters[1:])


def _step(key: Any) -> int | str:
    """A key of a pytree path in the form that ``shared`` uses: an index or a name."""
    for name in ("idx", "key", "name"):
        if hasattr(key, name):
            found: int | str = getattr(key, name)
            return found
    return str(key)


def _words(path: Path) -> str:
    return repr(path[0] if len(path) == 1 else path)
