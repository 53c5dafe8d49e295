"""Executors, which compute the cells of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from fixedpoint.core.options import Options
from fixedpoint.execution.cell import Cell, Finished

__all__ = ["Executor", "InProcess"]


class Executor(Options, ABC):
    """Computes the cells of a run: a frozen dataclass of options."""

    @abstractmethod
    def run(self, cells: Sequence[Cell], work: Callable[[Cell], Finished]) -> Generator[Finished, None, None]:
        """Yield the result of each cell as soon as it is available, in any order.

        When the generator is closed (after an interrupt), it must stop the cells that are being computed.

        Parameters
        ----------
        cells
            The cells to compute; those of one task are adjacent. They can be pickled.
        work
            Computes one cell. It does not raise: failures of a cell are part of its result. It can be pickled. Each
            process should keep one copy of it, so that what the cells of a task share is made once per process.
        """


@dataclass(frozen=True)
class InProcess(Executor):
    """Computes one cell after another, in this process."""

    def run(self, cells: Sequence[Cell], work: Callable[[Cell], Finished]) -> Generator[Finished, None, None]:
        for cell in cells:
            yield work(cell)
