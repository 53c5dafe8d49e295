"""Prints the results of a run for the commands ``run`` and ``report``: the table, the failures, the files written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from fixedpoint.cli.sentences import complain
from fixedpoint.cli.tables import console, print_sections

if TYPE_CHECKING:
    from fixedpoint.report.reading import RunData

__all__ = ["print_report"]


def print_report(run: RunData, quiet: bool = False, as_json: bool = False) -> None:
    """Write the files of the report and print the results.

    Parameters
    ----------
    run
        The run.
    quiet
        Whether to print only what went wrong.
    as_json
        Whether to print JSON instead of the table.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    from fixedpoint.execution.plain import json_text, one_line
    from fixedpoint.report.build import build
    from fixedpoint.report.data import to_data
    from fixedpoint.report.makers import remarks
    from fixedpoint.report.table import sections

    written = build(run)
    out = console()
    if as_json:
        typer.echo(json_text(to_data(run, written.files), canonical=False))
    elif not quiet:
        print_sections(out, sections(run))
        out.print()
    if not as_json:
        for sentence in remarks(run):
            if sentence != run.info.story:  # `run` has printed it, and `report` need not repeat it
                complain(sentence)
    for sentence in (*run.notices, *written.notices, *run.skips, *run.failures, *run.broken_expectations):
        complain(sentence)
    if written.missing:
        complain(written.missing)
    if not quiet and not as_json:
        for path in written.files:
            out.print(f"wrote {one_line(str(path))}", soft_wrap=True, markup=False)
