"""Computes one cell and makes its record. An exception in the cell is stored in the record."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fixedpoint.config.files import SCHEMA
from fixedpoint.config.folder import CellRow
from fixedpoint.config.record import Failure, Record
from fixedpoint.core.foreign import foreign
from fixedpoint.core.problem import AbilityError
from fixedpoint.core.progress import Progress
from fixedpoint.core.termination import Termination
from fixedpoint.execution.cell import Cell, Finished
from fixedpoint.execution.plain import cut, json_text, printable, said
from fixedpoint.registry import registry
from fixedpoint.runs import host
from fixedpoint.runs.results import arrays_of, numbers_and_message
from fixedpoint.tasks.task import Context, Result, Task

__all__ = ["Work", "skipped"]


class Work:
    """Computes cells, one per call.

    Successive cells of the same task share the objects that the task caches. A pickled copy starts with an empty cache.

    Parameters
    ----------
    threads
        Number of threads of torch; None leaves it unchanged.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self._task = ""
        self._shared: dict[Hashable, Any] = {}

    def __reduce__(self) -> tuple[type[Work], tuple[int | None]]:
        # An executor may send this to other processes, each of which makes what its cells share only once, itself.
        return Work, (self.threads,)

    def __call__(self, cell: Cell) -> Finished:
        """Compute a cell and return its record and arrays, whether it fails or not."""
        notices: dict[str, None] = {}
        with _threads(self.threads):
            finished = self._ended(cell, host.now(), notices)
        return replace(finished, notices=tuple(notices))

    def _ended(self, cell: Cell, started: str, notices: dict[str, None]) -> Finished:
        """The result of a cell, whether it fails or not."""
        try:
            with foreign():
                return self._finished(cell, started, notices)
        except AbilityError as error:  # only the solve can tell: tasks need not declare all abilities
            return Finished(_record(cell, started, "skipped", reason=said(error)))
        except Exception as error:  # a task may raise anything; the record says what, and the run goes on
            return Finished(_record(cell, started, "failed", error=_failure(error)))

    def _finished(self, cell: Cell, started: str, notices: dict[str, None]) -> Finished:
        result = self._result(cell, notices)
        told = numbers_and_message(result)
        arrays, notes = arrays_of(result)
        told["message"] = "\n".join(filter(None, [told["message"], *notes]))
        return Finished(_record(cell, started, "ok", **told), arrays)

    def _result(self, cell: Cell, notices: dict[str, None]) -> Result:
        task: Task = registry.create("task", cell.task)
        context = Context(
            solver=registry.create("solver", cell.solver),
            termination=Termination(**cell.termination),
            seed=cell.seed,
            gradient=registry.create("gradient", cell.gradient) if cell.gradient else None,
            on_round=_teller(cell, notices),
            shared=self._shared_of(cell),
        )
        # A record must not depend on the cells that were computed before it, so every generator is seeded.
        random.seed(cell.seed)
        np.random.seed(cell.seed)
        torch.manual_seed(cell.seed)
        return task.run(context)

    def _shared_of(self, cell: Cell) -> dict[Hashable, Any]:
        """The cache of this cell's task. The cache of the previous task is dropped."""
        task = json_text(cell.task)
        if task != self._task:
            self._task, self._shared = task, {}
        return self._shared


def skipped(cell: Cell) -> Record:
    """Return the record of a cell that the plan marked as impossible."""
    return _record(cell, host.now(), "skipped", reason=cell.skip)


def _record(cell: Cell, started: str, status: str, **more: Any) -> Record:
    return Record.model_validate(
        {
            "schema_version": SCHEMA,
            "hash": cell.hash,
            "labels": cell.labels,
            "config": cell.config,
            "seed": cell.seed,
            "status": status,
            "threads": torch.get_num_threads(),
            "made_by": {name: maker.model_dump() for name, maker in cell.made_by.items()},
            "versions": host.versions(cell.made_by),
            "machine": host.machine(),
            "started": started,
            "finished": host.now(),
            **more,
        }
    )


def _failure(error: Exception) -> Failure:
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception:  # its class may do anything when it is asked for a text
        trace = "no traceback"
    return Failure(type=type(error).__name__, message=said(error), traceback=cut(printable(trace)))


def _teller(cell: Cell, notices: dict[str, None]) -> Callable[[Progress], None] | None:
    """The function that calls the hook ``fixedpoint_round``; None if no plugin implements it.

    It is left out if possible, because reporting a round costs a synchronisation with the device. A plugin that raises
    an exception adds to ``notices``, and is not called again for this cell.
    """
    listeners = registry.listeners("round")
    if not listeners:
        return None
    label = CellRow.of(cell).label

    def tell(progress: Progress) -> None:
        for listener in list(listeners):
            said = listener(
                cell=label,
                round=progress.round,
                running=progress.running,
                relative_error=progress.relative_error,
            )
            if said:
                notices[said] = None
                listeners.remove(listener)

    return tell


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set the number of threads of torch within a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
