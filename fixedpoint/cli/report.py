"""``fixedpoint report``: writes the report of a run folder again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fixedpoint.cli.sentences import FAILED, complain, in_sentences

__all__ = ["report"]


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a run.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Write the table, plots, pictures and page of a run again.

    The report is made from the run folder alone, and nothing is computed.
    Damaged records are named and left out.

    \b
    Example:
      fixedpoint report runs/study
    """
    from fixedpoint.cli.summary import print_report
    from fixedpoint.config.writing import WriteError
    from fixedpoint.report.reading import read_run

    with in_sentences():
        run = read_run(folder)
    try:
        print_report(run, as_json=as_json)
    except WriteError as error:
        complain(f"cannot write {error.filename}: {error.strerror}")
        raise typer.Exit(FAILED) from None
