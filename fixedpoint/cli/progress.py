"""Progress of a run: plugins of this process that listen to its life cycle."""

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
    """Show how a run gets on: live on a terminal, a line for every cell elsewhere."""
    listener: LiveProgress | LineProgress = LiveProgress(out) if out.is_terminal else LineProgress(out)
    registry.register(listener, name="progress of this run")
    try:
        yield
    finally:
        registry.unregister(listener)
        listener.close()


class LineProgress:
    """One line a cell; no rounds, so that nothing waits for the device more often than it must."""

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
        """Nothing is left open."""


class LiveProgress:
    """A bar with the cells done, and the cell in flight with its round and residual."""

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
        # A solver that goes step by step has no residual to tell.
        residual = f", residual {relative_error:.1e}" if relative_error == relative_error else ""
        self._bar.update(self._task, description=f"round {round}{residual}  {cell}")

    @hookimpl
    def fixedpoint_cell_finished(self, record: Mapping[str, Any]) -> None:
        self._bar.update(self._task, advance=1, description="")

    def close(self) -> None:
        """Take the bar off the screen."""
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
