"""Prints tables on a terminal. Labels may wrap, numbers do not, and columns that do not fit move to a table below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fixedpoint.report.table import Row, Section

__all__ = ["aligned", "console", "plain_table", "print_sections"]

# Minimum and maximum width of the column of labels, in characters.
_NARROWEST, _WIDEST = 14, 40
# Wide enough for a status of a count and one word, e.g. "100 converged", in one line.
_STATUS = 14
_GAP = 2
# Shorter headers, to save space.
_HEADERS = {"evaluations": "evals"}


def console(stderr: bool = False) -> Console:
    """Return a console for stdout or stderr. It prints plain text if it is no terminal or ``NO_COLOR`` is set."""
    return Console(stderr=stderr, highlight=False)


def plain_table(*headers: str) -> Table:
    """Return an empty table with a rule under its header and two spaces between columns."""
    return Table(*headers, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def aligned(rows: Sequence[tuple[str, Text | str]]) -> Table:
    """Return a table without borders that has names on the left and their explanations on the right."""
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(Text(f"  {name}"), text)
    return grid


def print_sections(out: Console, sections: Sequence[Section]) -> None:
    """Print the table of a run, with the best values in bold."""
    for section in sections:
        out.print()
        if len(sections) > 1:
            out.print(Text(section.title, style="bold"), soft_wrap=True)
        for first, columns in _pages(section, out.width):
            out.print(_table(section, first, columns))


def _pages(section: Section, width: int) -> Iterator[tuple[bool, list[int]]]:
    """Distribute the columns over tables that fit in ``width``; only the first table has the status."""
    label = min(_WIDEST, max(len(row.solver) for row in section.rows))
    status = _status_width(section) + _GAP
    widths = [_width(section, index) + _GAP for index in range(len(section.columns))]
    first, columns, used = True, list[int](), min(label, _NARROWEST) + status
    for index, needed in enumerate(widths):
        if columns and used + needed > width:
            yield first, columns
            first, columns, used = False, [], min(label, _NARROWEST)
        columns.append(index)
        used += needed
    yield first, columns


def _table(section: Section, first: bool, columns: Sequence[int]) -> Table:
    table = plain_table()
    table.add_column("solver", overflow="fold", max_width=_WIDEST)
    if first:
        table.add_column("status", overflow="fold", min_width=_status_width(section))
    for index in columns:
        header = Text("\n".join(_header(section, index)))  # a name of a metric is no markup
        table.add_column(header, justify="right", no_wrap=True, min_width=_width(section, index), vertical="top")
    for row in section.rows:
        table.add_row(*_cells(row, first, columns))
    return table


def _cells(row: Row, first: bool, columns: Sequence[int]) -> list[Text]:
    status = [Text(row.status, style="" if row.good else "red")] if first else []
    items = [Text(row.items[i].text, style="bold green" if row.items[i].best else "") for i in columns]
    return [Text(row.solver), *status, *items]


def _width(section: Section, index: int) -> int:
    return max(len(text) for text in (*_header(section, index), *(row.items[index].text for row in section.rows)))


def _status_width(section: Section) -> int:
    return min(_STATUS, max(len(row.status) for row in section.rows))


def _header(section: Section, index: int) -> list[str]:
    """The words of a column's header, one per line."""
    name = section.columns[index]
    return _HEADERS.get(name, name).split("_")
