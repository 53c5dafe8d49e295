"""Console output of an inversion: progress and problems go to stderr, the table goes to stdout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fixedpoint.execution.plain import one_line, printable
from fixedpoint_diffusion.command.work import Row
from fixedpoint_diffusion.inversion.invert import InversionProgress

__all__ = ["ProgressReporter", "complain", "print_table", "reporting"]


def complain(text: str) -> None:
    """Print a line to stderr; control characters, which names of files may have, become escapes."""
    typer.echo(printable(text), err=True)


class ProgressReporter:
    """Reports progress; this base class prints problems only."""

    on_round: Callable[[InversionProgress], None] | None = None

    def complain(self, text: str) -> None:
        """Print a line to stderr without disturbing a progress bar."""
        complain(text)

    def batch_done(self, rows: Sequence[Row]) -> None:
        """Called when a batch is done."""

    def stage(self, name: str) -> None:
        """Called with a description of the current work."""


class _Lines(ProgressReporter):
    """Prints one line per batch, if stderr is not a terminal."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0

    def batch_done(self, rows: Sequence[Row]) -> None:
        self._done += len(rows)
        good = sum(row.ok for row in rows)
        rounds = max((row.rounds or 0 for row in rows), default=0)
        complain(f"[{self._done}/{self._total}] {good} of {len(rows)} inverted, {rounds} rounds")


class _Bar(ProgressReporter):
    """Draws a progress bar of the images done, with the progress of the current batch."""

    def __init__(self, total: int, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total)
        self.on_round = self._round

    def complain(self, text: str) -> None:
        self._bar.console.print(printable(text), soft_wrap=True, markup=False)

    def _round(self, progress: InversionProgress) -> None:
        # NaN, which is not equal to itself, is not shown.
        error = f", error {progress.relative_error:.0e}" if progress.relative_error == progress.relative_error else ""
        self.stage(f"{progress.stage}, round {progress.round}{error}")

    def batch_done(self, rows: Sequence[Row]) -> None:
        self._bar.update(self._task, advance=len(rows), description="")

    def stage(self, name: str) -> None:
        self._bar.update(self._task, description=name)


@contextlib.contextmanager
def reporting(total: int, quiet: bool) -> Iterator[ProgressReporter]:
    """A context with the reporter for an inversion of ``total`` images."""
    out = Console(stderr=True, highlight=False)
    if quiet or not out.is_terminal:
        yield ProgressReporter() if quiet else _Lines(total)
        return
    columns = (BarColumn(12), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=out, transient=True) as bar:
        yield _Bar(total, bar)


def print_table(rows: Sequence[Row], called: Callable[[int | None], str], conditioned: str) -> None:
    """Print a table with one row per image; names may wrap, numbers do not.

    ``conditioned`` heads the column of what the images are conditioned on; empty for none.

    On terminals narrower than 72 columns the only number is the round trip.
    """
    out = Console(highlight=False)
    numbers = _NUMBERS if out.width >= _WIDE else _NUMBERS[:1]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("image", overflow="fold", min_width=10, max_width=30)
    if conditioned:
        table.add_column(conditioned, overflow="fold", max_width=13)
    table.add_column("status", overflow="fold", min_width=8, max_width=11)
    for header, width, _ in numbers:
        table.add_column(header, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        status = Text(row.status.replace("_", " "), style="" if row.ok else "red")
        said = [f"{called(row.label)}{' ?' * row.guessed}"] if conditioned else []
        table.add_row(Text(one_line(row.name)), *map(Text, said), status, *(shown(row) for _, _, shown in numbers))
    out.print(table)


def _rms(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


# Header, width, and the function that gives the text for a row.
_NUMBERS: tuple[tuple[str, int, Callable[[Row], str]], ...] = (
    ("round\ntrip", 7, lambda row: _rms(row.round_trip)),
    ("misfit\n", 7, lambda row: _rms(row.misfit)),
    ("worst\nstep", 7, lambda row: _rms(row.worst_residual)),
    ("rounds\n", 6, lambda row: str(row.rounds or "")),
)
_WIDE = 72
