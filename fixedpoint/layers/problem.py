"""CellProblem: a cell with its inputs as a fixed-point problem whose rows can be taken."""

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
from fixedpoint.core.whole import AssumesIndependentRows
from fixedpoint.gradients.boundary import NamesTensors
from fixedpoint.layers.held import Held
from fixedpoint.layers.inputs import Inputs

__all__ = ["CellProblem"]


@dataclass
class _Taking:
    """How rows are taken: one object shared by a problem and all problems taken from it.

    Attributes
    ----------
    apart
        Whether the cell is called with only the rows that were taken; otherwise it is called with all rows.
    selected
        Whether rows have been taken.
    used
        Whether the cell has been called with only some of the rows.
    refusal
        The exception that such a call raised.
    beside
        Number of rows evaluated in addition to those that were requested.
    """

    apart: bool
    selected: bool = False
    used: bool = False
    refusal: Exception | None = None
    beside: int = 0


class CellProblem(FunctionProblem, HasTake, AssumesIndependentRows, NamesTensors):
    """The problem ``z = cell(z, *inputs)``, with independent rows or with the whole state as one row.

    Under automatic mixed precision the cell may return the dtype that autocast computes in. Its value is then converted
    to the dtype of the state.

    Parameters
    ----------
    cell
        The module.
    inputs
        Its inputs after the state; a tuple holds positional inputs.
    start
        The start, in the structure of the state; its first dimension is the batch.
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
        # A compiled cell is compiled for its shapes: to evaluate finished rows costs less than to compile again.
        self.taking = _Taking(apart=not is_compiled(cell))
        self._whole: CellProblem | None = None
        self._rows: Tensor | None = None

    def value(self, z: Any) -> Any:
        """The cell's value at a state in the user's structure, with weights and random numbers held fixed."""
        with self.held:
            value = self.cell(z, *self.inputs.positional, **self.inputs.keywords)
        device = self.layout.device.type
        if not torch.is_autocast_enabled(device):
            return value
        made = torch.get_autocast_dtype(device), torch.float32  # autocast gives results in one of the two
        return tree_map(
            lambda leaf: leaf.to(self.layout.dtype) if isinstance(leaf, Tensor) and leaf.dtype in made else leaf, value
        )

    @property
    def assumes_independent_rows(self) -> bool:
        """Whether finished rows were left out, so that the cell has not been evaluated at the whole answer."""
        return self.taking.selected

    def tensors(self) -> list[Tensor]:
        """The inputs, and the weights that were computed for this solve."""
        return [*self.inputs.tensors, *self.held.weights]

    def together(self) -> CellProblem:
        """The same problem, with all rows evaluated together in every call."""
        whole = copy.copy(self)
        whole.function, whole.taking = whole.value, _Taking(apart=False)
        return whole

    def take(self, rows: Int[Tensor, " k"]) -> CellProblem:
        """The problem of some of the rows, in the given order.

        If the cell draws random numbers, all rows are still evaluated, since the numbers that a row gets depend on the
        number of rows. All rows are also evaluated if the cell is compiled.
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
        """The cell's value at states of shape ``(B, D)``."""
        if self._whole is None or self._rows is None:
            return super().__call__(z)
        if self._apart:
            try:
                value = super().__call__(z)
            except torch.OutOfMemoryError:  # all rows would need even more memory
                raise
            except Exception as error:  # a cell may raise anything if an input was wrongly cut
                refusal = error
            else:
                self.taking.used = True
                return value
            value = self._among_all(z)  # raises again if taking rows was not the cause
            self.taking.apart, self.taking.refusal = False, refusal
            return value
        return self._among_all(z)

    @property
    def _apart(self) -> bool:
        return self.taking.apart and not self.held.draws

    def _among_all(self, z: Tensor) -> Tensor:
        """The value of these rows, computed by evaluating all rows."""
        whole, rows = self._whole, self._rows
        assert whole is not None  # this is part of one
        assert rows is not None
        self.taking.beside += whole.layout.rows - len(rows)
        return whole(z.new_zeros(whole._start.shape).index_copy(0, rows, z))[rows]
