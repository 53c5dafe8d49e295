"""Where in a batch of steps one failed."""

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
    """Which step of which row raised, in words: the smallest part of a batch that fails alike, found by halving it.

    Parameters
    ----------
    error
        What ``step(x, index, row)`` raised.
    step, length
        The step of a chain of so many.
    x, index, row
        The batch: as of ``Chain.step``.
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
    except Exception as error:  # any other failure says nothing of the one that is looked for
        return isinstance(error, kind)
    return False
