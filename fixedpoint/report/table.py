"""Makes the table of a run, as plain rows and columns for the terminal and the page, and as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass

from fixedpoint.config.record import Record
from fixedpoint.report.numbers import count_text, number_text, seconds_text
from fixedpoint.report.reading import Entry, RunData

__all__ = ["Item", "Row", "Section", "sections", "to_csv", "to_markdown"]

_NOTHING = "–"
# Less is better for metrics with one of these in their name. For other metrics that is unknown, and no best is marked.
_LESS_IS_BETTER = ("error", "loss", "residual", "distance", "seconds")


@dataclass(frozen=True)
class Item:
    """One entry of the table.

    Attributes
    ----------
    text
        Its text.
    best
        Whether it is the best of its column.
    """

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """The row of one cell.

    Attributes
    ----------
    solver
        Label of the solver.
    status
        How the cell ended, in words.
    good
        Whether all rows of its state converged.
    items
        One entry per column.
    """

    solver: str
    status: str
    good: bool
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Section:
    """The table of cells that are compared with one another: same task, gradient estimator and seed.

    Attributes
    ----------
    title
        The labels of the task and the gradient estimator, and the seed if there are several.
    columns
        The columns after solver and status: rounds, evaluations, seconds, and the metrics of the task.
    rows
        One row per cell.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def sections(run: RunData) -> list[Section]:
    """Return the table in sections. The best value of a column is marked, among the cells whose rows all converged."""
    found = []
    for group in run.groups:
        for seed in run.seeds:
            entries = [entry for entry in group.entries if entry.cell.seed == seed]
            title = f"{group.title}, seed {seed}" if len(run.seeds) > 1 else group.title
            if entries:
                found.append(_section(title, entries))
    return found


def _section(title: str, entries: list[Entry]) -> Section:
    metrics = list(dict.fromkeys(name for e in entries if e.record for name in e.record.metrics))
    values = [_values(entry.record, metrics) for entry in entries]
    columns = ["rounds", "evaluations", "seconds", *metrics]
    best = [_best(column, entries, [row[index] for row in values]) for index, column in enumerate(columns)]
    rows = []
    for entry, row in zip(entries, values, strict=True):
        items = [
            Item(_text(column, value), best=value is not None and _sound(entry.record) and value == best[index])
            for index, (column, value) in enumerate(zip(columns, row, strict=True))
        ]
        rows.append(Row(entry.cell.solver, status_text(entry), _sound(entry.record), tuple(items)))
    return Section(title, tuple(columns), tuple(rows))


def status_text(entry: Entry) -> str:
    """Return how a cell ended: ``14 converged, 2 stalled``, ``failed``, ``skipped``, ``not run yet``, ..."""
    record = entry.record
    if record is None:
        return entry.reason
    if record.status != "ok":
        return record.status
    counts = [f"{count} {label.replace('_', ' ')}" for label, count in record.rows.items()]
    return ", ".join(counts) or "done"


def _values(record: Record | None, metrics: list[str]) -> list[float | None]:
    if record is None or record.status != "ok":
        return [None] * (3 + len(metrics))
    return [record.rounds, record.evaluations, record.seconds, *(record.metrics.get(name) for name in metrics)]


def _sound(record: Record | None) -> bool:
    """Whether a result can be marked as best: all rows converged."""
    return record is not None and record.status == "ok" and set(record.rows) <= {"converged"}


def _best(column: str, entries: list[Entry], values: list[float | None]) -> float | None:
    known = column in ("rounds", "evaluations") or any(word in column for word in _LESS_IS_BETTER)
    sound = [v for e, v in zip(entries, values, strict=True) if v is not None and _sound(e.record)]
    finite = [value for value in sound if not math.isnan(value)]
    return min(finite) if known and len(entries) > 1 and finite else None


def _text(column: str, value: float | None) -> str:
    if value is None:
        return _NOTHING
    if column in ("rounds", "evaluations"):
        return count_text(int(value))
    return seconds_text(value) if column == "seconds" else number_text(value)


def to_markdown(tables: list[Section]) -> str:
    """Return the table as Markdown, with the best values in bold."""
    parts = []
    for section in tables:
        header = ["solver", "status", *(column.replace("_", " ") for column in section.columns)]
        lines = ["| " + " | ".join(header) + " |", "|:--|:--|" + "--:|" * len(section.columns)]
        for row in section.rows:
            items = [f"**{item.text}**" if item.best else item.text for item in row.items]
            lines.append("| " + " | ".join([row.solver.replace("|", r"\|"), row.status, *items]) + " |")
        parts.append(f"### {section.title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def to_csv(run: RunData) -> str:
    """Return the table as CSV, with one line per cell and unrounded numbers."""
    metrics = list(dict.fromkeys(name for e in run.entries if e.record for name in e.record.metrics))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["task", "gradient", "seed", "solver", "status", "rounds", "evaluations", "seconds", *metrics])
    for entry in run.entries:
        cell = entry.cell
        values = ["" if value is None else value for value in _values(entry.record, metrics)]
        writer.writerow([cell.task, cell.gradient or "", cell.seed, cell.solver, status_text(entry), *values])
    return stream.getvalue()
