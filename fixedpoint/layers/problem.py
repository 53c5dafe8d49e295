"""CellProblem: a cell with its inputs as a fixed-point problem, from which rows that are done can be taken out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fixedpoint.core.problem import FunctionProblem
from fixedpoint.layers.held import Held

__all__ = ["CellProblem"]


class CellProblem(FunctionProblem):
    """``z = cell(z, *inputs)``, row by row.

    Under automatic mixed precision the cell may answer in the dtype that autocast computes in; its value is taken back
    to that of the state.

    Parameters
    ----------
    cell
        The module.
    inputs
        What it takes beside the state. Tensors whose first dimension is the batch are taken row by row; others belong
        to all rows.
    start
        The start, whose first dimension is the batch.
    """

    def __init__(self, cell: nn.Module, inputs: tuple[Any, ...], start: Any) -> None:
        self.cell, self.inputs = cell, inputs
        super().__init__(self.value, start, "independent")
        self.held = Held(cell, self.layout.device)
        self._whole: CellProblem | None = None
        self._rows: Tensor | None = None

    def value(self, z: Any) -> Any:
        """The cell's value."""
        with self.held:
            value = self.cell(z, *self.inputs)
        device = self.layout.device.type
        if not torch.is_autocast_enabled(device):
            return value
        made = torch.get_autocast_dtype(device), torch.float32  # an operation's result is one or the other
        return tree_map(
            lambda leaf: leaf.to(self.layout.dtype) if isinstance(leaf, Tensor) and leaf.dtype in made else leaf, value
        )

    def take(self, rows: Int[Tensor, " k"]) -> CellProblem:
        """The problem of some of the rows.

        Where the cell draws random numbers all rows are evaluated all the same, for what a row is given depends on how
        many there are.
        """
        part = copy.copy(self)
        part.layout = self.layout.take(len(rows))
        part._start = self._start[rows]
        part.function = part.value
        if self.held.draws:
            part._whole, part._rows = self._whole or self, rows if self._rows is None else self._rows[rows]
            return part
        count = self.layout.rows
        part.inputs = tree_map(
            lambda leaf: leaf[rows] if isinstance(leaf, Tensor) and leaf.shape[:1] == (count,) else leaf, self.inputs
        )
        return part

    def __call__(self, z: Tensor) -> Tensor:
        """The cell's value, of states ``(B, D)``."""
        if self._whole is None or self._rows is None:
            return super().__call__(z)
        return self._whole(z.new_zeros(self._whole._start.shape).index_copy(0, self._rows, z))[self._rows]
