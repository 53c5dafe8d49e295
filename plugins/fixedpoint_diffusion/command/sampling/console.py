"""Console output of ``fixedpoint sample``: progress and problems go to stderr, the table goes to stdout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from fixedpoint.core.progress import Progress
from fixedpoint_diffusion.command.console import complain
from fixedpoint_diffusion.command.sampling.work import Batch

__all__ = ["SampleReporter", "print_table", "reporting"]


class SampleReporter:
    """Reports progress; this base class reports none."""

    on_round: Callable[[Progress], None] | None = None

    def batch_done(self, batch: Batch) -> None:
        """Called when a batch is done."""


class _Lines(SampleReporter):
    """Prints one line per batch, if stderr is not a terminal."""

    def __init__(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def batch_done(self, batch: Batch) -> None:
        self._done += len(batch.rows)
        good = sum(row.ok for row in batch.rows)
        rounds = f"{batch.rows[0].rounds} rounds for {batch.steps} steps"
        complain(f"[{self._done}/{self._total}] {good} of {len(batch.rows)} sampled, {rounds}, {batch.seconds:.1f} s")


class _Bar(SampleReporter):
    """Draws a progress bar of the images done, with the progress of the current batch."""

    def __init__(self, done: int, total: int, bar: Bar) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total, completed=done)
        self.on_round = self._round

    def _round(self, progress: Progress) -> None:
        error = progress.relative_error
        said = f", error {error:.0e}" if error == error else ""  # NaN, which is not equal to itself, is not shown
        self._bar.update(self._task, description=f"round {progress.round}{said}")

    def batch_done(self, batch: Batch) -> None:
        self._bar.update(self._task, advance=len(batch.rows), description="")


@contextlib.contextmanager
def reporting(done: int, total: int, quiet: bool) -> Iterator[SampleReporter]:
    """A context with the reporter for ``total`` images, of which some are there already."""
    out = Console(stderr=True, highlight=False)
    if quiet or not out.is_terminal:
        yield SampleReporter() if quiet else _Lines(done, total)
        return
    columns = (BarColumn(12), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Bar(*columns, console=out, transient=True) as bar:
        yield _Bar(done, total, bar)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table with one row per image; prompts and names may wrap, numbers do not."""
    out = Console(highlight=False)
    compared = any(row["difference"] is not None for row in rows)
    prompts = any(row["prompt"] for row in rows)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    if prompts:
        table.add_column("prompt", overflow="fold", min_width=8, max_width=28)
    table.add_column("seed", justify="right", overflow="fold")
    table.add_column("status", overflow="fold", min_width=8, max_width=11)
    headers = ("rounds", "error", *(("differs", "levels") if compared else ()))
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True, min_width=7)
    for row in rows:
        status = Text(row["status"].replace("_", " "), style="" if row["status"] == "converged" else "red")
        numbers = [str(row["rounds"]), f"{row['relative_error']:.0e}" if row["relative_error"] else "0"]
        if compared:
            numbers += [_short(row["difference"], ".1e"), _short(row["levels"], ".1f")]
        table.add_row(*([Text(row["prompt"])] if prompts else []), str(row["seed"]), status, *numbers)
    out.print(table)


def _short(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
