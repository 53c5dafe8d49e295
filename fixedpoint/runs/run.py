"""Executes a run: plans the cells, reuses existing records, computes the rest, and writes each record at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fixedpoint.config.expectations import broken_expectations
from fixedpoint.config.files import SCHEMA
from fixedpoint.config.folder import NAMES, CellRow, Folder, RunInfo, holds_run
from fixedpoint.config.makers import Makers
from fixedpoint.config.record import Record
from fixedpoint.config.runfile import RunConfig, to_yaml
from fixedpoint.config.targets import check_folder, same_content
from fixedpoint.core.foreign import brief, foreign
from fixedpoint.execution.cell import Cell, Finished
from fixedpoint.execution.executor import Executor
from fixedpoint.registry import registry
from fixedpoint.runs import host
from fixedpoint.runs.interrupts import remembered
from fixedpoint.runs.lock import locked
from fixedpoint.runs.plan import plan
from fixedpoint.runs.store import Store
from fixedpoint.runs.work import Work, skipped
from fixedpoint.tasks.task import HasNotes, Task

__all__ = ["InterruptedRunError", "Outcome", "execute"]


class InterruptedRunError(KeyboardInterrupt):
    """A run was interrupted; the records of finished cells are kept.

    Parameters
    ----------
    done, total
        Number of cells that have a record, and of all cells.
    """

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"interrupted; {done} of {total} cells have their record")
        self.done = done
        self.total = total


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    folder
        The run folder.
    records
        The record of every cell, in the order of the plan.
    reused
        Number of records that were reused.
    story
        A sentence on which cells were reused, and which were run again and why; empty if no cell had a record before.
    failures
        A sentence for every cell that failed.
    broken
        A sentence for every expectation that does not hold.
    notices
        Other messages: notes of the tasks, damaged records, plugins whose hooks raised an exception.
    """

    folder: Folder
    records: tuple[Record, ...]
    reused: int
    story: str
    failures: tuple[str, ...]
    broken: tuple[str, ...]
    notices: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether no cell failed and all expectations hold."""
        return not self.failures and not self.broken


def execute(config: RunConfig, path: Path, fresh: bool = False, second_interrupt_exits: bool = False) -> Outcome:
    """Carry out a run in a folder.

    A cell that has a record is not computed again if the same versions and code made the record. Failed cells and
    damaged records are computed again.

    Parameters
    ----------
    config
        The run.
    path
        The run folder, created if it is missing.
    fresh
        Whether to delete all existing records first.
    second_interrupt_exits
        Whether a second interrupt ends the process immediately.

    Raises
    ------
    InterruptedRunError
        On a keyboard interrupt. The next run in the folder continues from there.
    BusyFolderError
        If another run is using the folder.
    WriteError
        If the folder cannot be written, or holds the run file or other files that the run would replace.
    """
    cells = plan(config)
    _check_folder(config, path)
    with locked(path):
        return _execute(config, cells, path, fresh, second_interrupt_exits)


def _check_folder(config: RunConfig, path: Path) -> None:
    """Refuse a folder in which the run file, or a file that no run wrote, would be replaced.

    The ``config.yaml`` of a run may be run in its own folder: it is left as it is.
    """
    inputs = [file for file in config.files if not same_content(file, to_yaml(config.plain()).encode())]
    check_folder(path, NAMES, inputs, holds_run, "a run")


def _execute(config: RunConfig, cells: list[Cell], path: Path, fresh: bool, second_exits: bool) -> Outcome:
    store = Store(path, fresh)
    done = store.done(cells)
    records, notices = done.records, _notes(config) + done.notices
    info = _info(config, cells).model_copy(update={"reused": len(records), "again": done.again})
    with remembered(second_exits) as check:
        try:
            store.begin(to_yaml(config.plain()), info)
            notices += _carry_out(config, cells, records, store, check)
        except KeyboardInterrupt:
            raise InterruptedRunError(len(records), len(cells)) from None
    info = info.model_copy(update={"finished": host.now()})
    store.folder.write_info(info)
    notices += _tell("run_finished", folder=path)
    rows = [(CellRow.of(cell), records[cell.hash]) for cell in cells if cell.hash in records]
    failures = [f"{row.label}: {r.error.type}: {r.error.message}" for row, r in rows if r.error is not None]
    failures += [f"{CellRow.of(cell).label}: the executor gave no record" for cell in cells if cell.hash not in records]
    return Outcome(
        folder=store.folder,
        records=tuple(record for _, record in rows),
        reused=info.reused,
        story=info.story,
        failures=tuple(failures),
        broken=tuple(broken_expectations(config.expect, rows)),
        notices=tuple(dict.fromkeys(notices)),
    )


def _notes(config: RunConfig) -> list[str]:
    """The notes of all tasks."""
    notes: list[str] = []
    for choice in config.tasks:
        try:
            with foreign():
                task: Task = registry.create("task", choice.config)
                notes += [str(note) for note in task.notes()] if isinstance(task, HasNotes) else []
        except Exception as error:  # a task may be of a plugin; its cells say what they lack
            notes.append(f"the notes of the task {choice.label} cannot be had: {brief(error)}")
    return notes


def _carry_out(
    config: RunConfig, cells: list[Cell], records: dict[str, Record], store: Store, check: Callable[[], None]
) -> list[str]:
    """Compute the cells without a record, add each record to ``records`` at once, and return the notices."""
    for cell in cells:
        if cell.skip and cell.hash not in records:
            records[cell.hash] = store.keep(Finished(skipped(cell)))
    pending = [cell for cell in cells if cell.hash not in records]
    executor: Executor = registry.create("executor", config.executor.config)
    notices = _tell("run_started", folder=store.folder.path, cells=len(pending))
    with contextlib.closing(_results(executor, pending, Work(config.threads), notices)) as results:
        for finished in results:
            record = store.keep(finished)
            records[record.hash] = record
            notices += [*finished.notices, *_tell("cell_finished", record=record.model_dump())]
            check()
    return notices


def _info(config: RunConfig, cells: list[Cell]) -> RunInfo:
    makers = {name: maker for cell in cells for name, maker in cell.made_by.items()}
    return RunInfo(
        schema_version=SCHEMA,
        name=config.name,
        cells=[CellRow.of(cell) for cell in cells],
        expect=config.expect,
        threads=config.threads or torch.get_num_threads(),
        versions=host.versions(makers | Makers().of(config.executor.parts)),
        machine=host.machine(),
        started=host.now(),
        finished=None,
    )


def _tell(hook: str, **values: Any) -> list[str]:
    """Call a hook of all plugins. An exception becomes a notice and does not end the run."""
    return [said for listener in registry.listeners(hook) if (said := listener(**values))]


def _results(executor: Executor, cells: list[Cell], work: Work, notices: list[str]) -> Generator[Finished, None, None]:
    """The results of an executor, those of the cells of this run alone. What it raises becomes a notice.

    Cells that are left without a record then count as failed.
    """
    hashes = {cell.hash for cell in cells}
    whose = type(executor).__name__
    results: Iterator[Finished] | None = None
    try:
        with foreign():
            results = iter(executor.run(cells, work))
        while True:
            with foreign():
                finished = next(results, None)
            if finished is None:
                return
            if not isinstance(finished, Finished) or getattr(finished.record, "hash", None) not in hashes:
                raise TypeError(f"{type(finished).__name__} is no result of a cell of this run")
            yield finished
    except Exception as error:  # an executor may be of a plugin
        notices.append(f"the executor {whose} raised {brief(error)}")
    finally:  # closing the generator ends what the executor started, also when an interrupt leaves the loop
        with foreign(), contextlib.suppress(AttributeError):
            results.close()  # type: ignore[union-attr]
