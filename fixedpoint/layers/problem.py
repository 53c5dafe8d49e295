"""CellProblem: a cell with its inputs as a fixed-point problem, from which rows that are done can be taken out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fixedpoint.core.compiling import is_compiled
from fixedpoint.core.layout import Rows
from fixedpoint.core.problem import FunctionProblem, HasTake
from fixedpoint.core.whole import Unproven
from fixedpoint.layers.held import Held
from fixedpoint.layers.inputs import Inputs

__all__ = ["CellProblem"]


@dataclass
class _Taking:
    """How rows are taken, known to a problem and to all that was taken from it.

    Attributes
    ----------
    apart
        Whether the cell is called with the rows alone; all rows are evaluated otherwise.
    selected
        Whether rows have been taken.
    used
        Whether the cell has been called so.
    refusal
        What the cell raised when it was.
    beside
        Rows evaluated beside those that were asked for.
    """

    apart: bool
    selected: bool = False
    used: bool = False
    refusal: Exception | None = None
    beside: int = 0


class CellProblem(FunctionProblem, HasTake, Unproven):
    """``z = cell(z, *inputs)``, row by row, or the whole state one row.

    Under automatic mixed precision the cell may answer in the dtype that autocast computes in; its value is taken back
    to that of the state.

    Parameters
    ----------
    cell
        The module.
    inputs
        What it takes beside the state; a tuple is that of positional ones.
    start
        The start, whose first dimension is the batch.
    rows
        ``"independent"`` or ``"joint"``.
    """

    def __init__(
        self, cell: nn.Module, inputs: Inputs | tuple[Any, ...], start: Any, rows: Rows = "independent"
    ) -> None:
        self.cell = cell
        self.inputs = inputs if isinstance(inputs, Inputs) else Inputs(inputs, {})
        super().__init__(self.value, start, rows)
        self.held = Held(cell, self.layout.device)
        # A compiled cell is compiled for its shapes: rows that are done cost less than compiling for the others.
        self.taking = _Taking(apart=not is_compiled(cell))
        self._whole: CellProblem | None = None
        self._rows: Tensor | None = None

    def value(self, z: Any) -> Any:
        """The cell's value."""
        with self.held:
            value = self.cell(z, *self.inputs.positional, **self.inputs.keywords)
        device = self.layout.device.type
        if not torch.is_autocast_enabled(device):
            return value
        made = torch.get_autocast_dtype(device), torch.float32  # an operation's result is one or the other
        return tree_map(
            lambda leaf: leaf.to(self.layout.dtype) if isinstance(leaf, Tensor) and leaf.dtype in made else leaf, value
        )

    @property
    def unproven(self) -> bool:
        """Whether rows that were done have been left out: nobody has seen the cell's value where all of them ended."""
        return self.taking.selected

    def together(self) -> CellProblem:
        """The same problem, whose rows are always evaluated together."""
        whole = copy.copy(self)
        whole.function, whole.taking = whole.value, _Taking(apart=False)
        return whole

    def take(self, rows: Int[Tensor, " k"]) -> CellProblem:
        """The problem of some of the rows.

        Where the cell draws random numbers all rows are evaluated all the same, for what a row is given depends on how
        many there are; where it is compiled, too.
        """
        self.taking.selected = True
        part = copy.copy(self)
        part.layout = self.layout.take(len(rows))
        part._start = self._start[rows]
        part.function = part.value
        part._whole, part._rows = self._whole or self, rows if self._rows is None else self._rows[rows]
        if self._apart:
            part.inputs = self.inputs.select_rows(rows, self.layout.rows)
        return part

    def __call__(self, z: Tensor) -> Tensor:
        """The cell's value, of states ``(B, D)``."""
        if self._whole is None or self._rows is None:
            return super().__call__(z)
        if self._apart:
            try:
                value = super().__call__(z)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a cell may raise anything where an input is not what it takes it for
                refusal = error
            else:
                self.taking.used = True
                return value
            value = self._among_all(z)  # raises, too, where the rows are not to blame
            self.taking.apart, self.taking.refusal = False, refusal
            return value
        return self._among_all(z)

    @property
    def _apart(self) -> bool:
        return self.taking.apart and not self.held.draws

    def _among_all(self, z: Tensor) -> Tensor:
        """The value of these rows as the whole problem has it."""
        whole, rows = self._whole, self._rows
        assert whole is not None  # this is part of one
        assert rows is not None
        self.taking.beside += whole.layout.rows - len(rows)
        return whole(z.new_zeros(whole._start.shape).index_copy(0, rows, z))[rows]
