"""Shows the progress of a run, through temporary plugins that implement the hooks of its life cycle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fixedpoint.registry import hookimpl, registry

__all__ = ["shown_progress"]


@contextmanager
def shown_progress(out: Console) -> Iterator[None]:
    """Show the progress of a run within a ``with`` block: a live bar on a terminal, else one line per cell.

    Parameters
    ----------
    out
        The console to print to.
    """
    listener: LiveProgress | LineProgress = LiveProgress(out) if out.is_terminal else LineProgress(out)
    registry.register(listener, name="progress of this run")
    try:
        yield
    finally:
        registry.unregister(listener)
        listener.close()


class LineProgress:
    """Prints one line per cell. It does not listen to rounds, since reporting them costs synchronisations."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._total = 0
        self._done = 0

    @hookimpl
    def fixedpoint_run_started(self, folder: Path, cells: int) -> None:
        self._total = cells

    @hookimpl
    def fixedpoint_cell_finished(self, record: Mapping[str, Any]) -> None:
        self._done += 1
        line = f"[{self._done}/{self._total}] {_name_of(record)}: {_outcome_of(record)}"
        self._out.print(line, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Do nothing: no display is open."""


class LiveProgress:
    """Shows a bar with the number of finished cells, and the current cell with its round and residual."""

    def __init__(self, out: Console) -> None:
        self._bar = Progress(
            BarColumn(bar_width=18),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=out,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)

    @hookimpl
    def fixedpoint_run_started(self, folder: Path, cells: int) -> None:
        self._bar.update(self._task, total=cells)
        self._bar.start()

    @hookimpl
    def fixedpoint_round(self, cell: str, round: int, running: int, relative_error: float) -> None:
        # NaN: the serial solver has no residual.
        residual = f", residual {relative_error:.1e}" if relative_error == relative_error else ""
        self._bar.update(self._task, description=f"round {round}{residual}  {cell}")

    @hookimpl
    def fixedpoint_cell_finished(self, record: Mapping[str, Any]) -> None:
        self._bar.update(self._task, advance=1, description="")

    def close(self) -> None:
        """Remove the bar from the screen."""
        self._bar.stop()


def _name_of(record: Mapping[str, Any]) -> str:
    labels = record["labels"]
    parts = [labels[part] for part in ("task", "solver", "gradient") if part in labels]
    return " / ".join([*parts, f"seed {record['seed']}"])


def _outcome_of(record: Mapping[str, Any]) -> str:
    if record["error"] is not None:
        return f"failed: {record['error']['type']}: {' '.join(record['error']['message'].split())}"
    counts = ", ".join(f"{count} {label.replace('_', ' ')}" for label, count in record["rows"].items())
    return f"{counts or 'done'}, {record['rounds']} rounds, {record['seconds']:.2f} s"
