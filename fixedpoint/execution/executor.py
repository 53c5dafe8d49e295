"""Executors: how the cells of a run are carried out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from fixedpoint.core.options import Options
from fixedpoint.execution.cell import Cell, Finished

__all__ = ["Executor", "InProcess"]


class Executor(Options, ABC):
    """Carries out cells: a frozen dataclass of options."""

    @abstractmethod
    def run(self, cells: Sequence[Cell], work: Callable[[Cell], Finished]) -> Generator[Finished, None, None]:
        """Each cell's result as soon as there is one, in any order.

        When the generator is closed (an interrupt), what is under way must be stopped.

        Parameters
        ----------
        cells
            What is to be done; cells of one task stand together. Plain values, to be pickled freely.
        work
            Carries out one cell and never raises for what goes wrong in it. It can be pickled; every process keeps
            its own copy, so that what the cells of a task share is made once per process.
        """


@dataclass(frozen=True)
class InProcess(Executor):
    """One cell after another, in this process."""

    def run(self, cells: Sequence[Cell], work: Callable[[Cell], Finished]) -> Generator[Finished, None, None]:
        for cell in cells:
            yield work(cell)
