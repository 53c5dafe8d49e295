"""Finds out which step of a batch raised an exception."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["place_of"]

Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def place_of(
    error: Exception,
    step: Step,
    length: int,
    x: Float[Tensor, "P *event"],
    index: Int[Tensor, " P"],
    row: Int[Tensor, " P"],
) -> str:
    """Describe which step of which row raised ``error``.

    The batch is halved, and the half that raises an exception of the same type is searched further, down to one pair or
    until neither half raises it by itself.

    Parameters
    ----------
    error
        The exception that ``step(x, index, row)`` raised.
    step
        The ``step`` of the chain.
    length
        ``N``, the number of steps of the chain.
    x, index, row
        The batch, as for ``Chain.step``.
    """
    while len(x) > 1:
        halves = zip(*(part.chunk(2) for part in (x, index, row)), strict=True)
        failing = next((half for half in halves if _fails(type(error), step, *half)), None)
        if failing is None:
            break
        x, index, row = failing
    if len(index) == 1:
        return f"in step {int(index)} of {length}, row {int(row)} (both counted from 0)"
    steps, rows = (f"{int(part.min())} to {int(part.max())}" for part in (index, row))
    return f"in a batch of {len(index)}: steps {steps} of {length}, rows {rows} (counted from 0)"


def _fails(kind: type[Exception], step: Step, x: Tensor, index: Tensor, row: Tensor) -> bool:
    try:
        step(x, index, row)
    except Exception as error:  # an exception of another type is not the one that is being located
        return isinstance(error, kind)
    return False
