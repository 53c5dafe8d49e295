"""Empty batches: a router may give an expert no rows, and the last part of a data set may be empty."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fixedpoint.core.counts import Counts
from fixedpoint.core.layout import Layout
from fixedpoint.core.solution import Solution, Trace

__all__ = ["empty_solution", "is_empty"]


def is_empty(start: Any) -> bool:
    """Whether a start contains tensors, all of them with no rows."""
    leaves = [leaf for leaf in tree_leaves(start) if isinstance(leaf, Tensor)]
    return bool(leaves) and all(leaf.shape[:1] == (0,) for leaf in leaves)


def empty_solution(start: Any, value: Any, solver: Any) -> Solution:
    """Return the solution of an empty batch, with ``value`` as its state; it counts the one call made for ``value``.

    Raises
    ------
    TypeError, ValueError
        If ``value`` does not have the structure, the shapes or the dtype of ``start``.
    """
    # A layout cannot be made of an empty batch: make that of one row, and take no rows of it.
    layout = Layout.of(tree_map(lambda leaf: leaf.new_zeros(1, *leaf.shape[1:]), start), "independent").take(0)
    state = layout.pack(value, "the cell's value")
    none = torch.zeros(0, 1, dtype=torch.float64, device=layout.device)
    whole, nothing = np.zeros(0, dtype=np.int64), np.zeros((0, 0))
    return Solution(
        state=state,
        fstate=state.detach(),
        error=none,
        scale=none,
        status=(),
        rounds=whole,
        counts=Counts(rounds=0, calls=1, evaluations=whole, computed=0, products=whole),
        trace=Trace(error=nothing, relative=nothing, rounds=whole),
        solver=solver,
        layout=layout,
    )
