"""Makes the table of a run, as plain rows and columns for the terminal and the page, and as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass

from fixedpoint.config.record import Record
from fixedpoint.execution.plain import one_line
from fixedpoint.report.numbers import count_text, number_text, seconds_text
from fixedpoint.report.reading import Entry, RunData

__all__ = ["Item", "Row", "Section", "sections", "to_csv", "to_markdown"]

_NOTHING = "–"
# Of the columns after solver and status, this many are counts; then come the seconds.
_COUNTS = 2
# Metrics that a table shows; the CSV file has all of them.
_MOST_METRICS = 60
# What a spreadsheet takes as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
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
    seeds = run.seeds
    for group in run.groups:
        of_seed: dict[int, list[Entry]] = {}
        for entry in group.entries:
            of_seed.setdefault(entry.cell.seed, []).append(entry)
        found += [
            _section(f"{group.title}, seed {seed}" if len(seeds) > 1 else group.title, of_seed[seed])
            for seed in seeds
            if seed in of_seed
        ]
    return found


def _section(title: str, entries: list[Entry]) -> Section:
    metrics = list(dict.fromkeys(name for e in entries if e.record for name in e.record.metrics))[:_MOST_METRICS]
    values = [_values(entry.record, metrics) for entry in entries]
    columns = ["rounds", "evaluations", "seconds", *metrics]
    best = [_best(index, column, entries, [row[index] for row in values]) for index, column in enumerate(columns)]
    rows = []
    for entry, row in zip(entries, values, strict=True):
        items = [
            Item(_text(index, value), best=value is not None and _sound(entry.record) and value == best[index])
            for index, value in enumerate(row)
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


def _best(index: int, column: str, entries: list[Entry], values: list[float | None]) -> float | None:
    known = index < _COUNTS or any(word in column for word in _LESS_IS_BETTER)
    sound = [v for e, v in zip(entries, values, strict=True) if v is not None and _sound(e.record)]
    finite = [value for value in sound if not math.isnan(value)]
    return min(finite) if known and len(entries) > 1 and finite else None


def _text(index: int, value: float | None) -> str:
    """The text of a value in a column: first come rounds, evaluations and seconds, however a metric is named."""
    if value is None:
        return _NOTHING
    if index < _COUNTS:
        return count_text(int(value))
    return seconds_text(value) if index == _COUNTS else number_text(value)


def to_markdown(tables: list[Section]) -> str:
    """Return the table as Markdown, with the best values in bold."""
    parts = []
    for section in tables:
        header = ["solver", "status", *(_marked(column.replace("_", " ")) for column in section.columns)]
        lines = ["| " + " | ".join(header) + " |", "|:--|:--|" + "--:|" * len(section.columns)]
        for row in section.rows:
            items = [f"**{item.text}**" if item.best else item.text for item in row.items]
            lines.append("| " + " | ".join([_marked(row.solver), _marked(row.status), *items]) + " |")
        parts.append(f"### {_marked(section.title)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _marked(text: str) -> str:
    """A text that is no markup in a cell of a Markdown table."""
    return one_line(text).replace("|", r"\|").replace("<", r"\<")


def _quoted(text: str) -> str:
    """A text in a CSV file. An apostrophe keeps a spreadsheet from taking it as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def to_csv(run: RunData) -> str:
    """Return the table as CSV, with one line per cell and unrounded numbers."""
    metrics = list(dict.fromkeys(name for e in run.entries if e.record for name in e.record.metrics))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = ["task", "gradient", "seed", "solver", "status", "rounds", "evaluations", "seconds"]
    writer.writerow([*columns, *map(_quoted, metrics)])
    for entry in run.entries:
        cell = entry.cell
        values = ["" if value is None else value for value in _values(entry.record, metrics)]
        texts = [_quoted(text) for text in (cell.task, cell.gradient or "", cell.solver, status_text(entry))]
        writer.writerow([*texts[:2], cell.seed, *texts[2:], *values])
    return stream.getvalue()
