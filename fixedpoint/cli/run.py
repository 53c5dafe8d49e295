"""``fixedpoint run``: carries out a run file and writes a report."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from fixedpoint.cli.output import kept_clean
from fixedpoint.cli.sentences import FAILED, INTERRUPTED, complain, in_sentences

__all__ = ["run"]


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The run file (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Set options of the file, e.g. tasks[0].batch=4."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the run.  [default: runs/NAME]"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute every cell again, even those with a record.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON; progress stays on stderr.")
    ] = False,
) -> None:
    """Run every task with every solver of a run file and write a report.

    Cells that have a record in the run folder are not computed again, so an
    interrupted run continues where it stopped. Records that another version or
    other code made are not reused.

    \b
    Examples:
      fixedpoint run study.yaml
      fixedpoint run study.yaml -o runs/quick tasks[0].batch=4
      fixedpoint run study.yaml seeds=[0,1,2] --json

    \b
    Exit status:
      0    every cell has a record, the expectations hold
      1    a cell failed, an expectation does not hold, or
           nothing can be written
      2    a mistake in the file or on the command line
      130  interrupted
    """
    try:
        _run(file, overrides or [], output, fresh, _Said(quiet, as_json))
    except KeyboardInterrupt as interrupt:
        from fixedpoint.runs.interrupts import forget_caught

        forget_caught()
        said = str(interrupt) or "interrupted before the first cell"
        complain(f"{said}; the same command again goes on from there")
        raise typer.Exit(INTERRUPTED) from None


class _Said(NamedTuple):
    """What the command prints: only failures if ``quiet``, and JSON if ``as_json``."""

    quiet: bool
    as_json: bool


def _run(file: Path, overrides: list[str], output: Path | None, fresh: bool, said: _Said) -> None:
    """Carry out the command; interrupts are handled by the caller."""
    from fixedpoint.cli.progress import shown_progress
    from fixedpoint.cli.summary import print_report
    from fixedpoint.cli.tables import console
    from fixedpoint.config.runfile import load, run_folder
    from fixedpoint.config.writing import WriteError
    from fixedpoint.report.reading import read_run
    from fixedpoint.runs.lock import BusyFolderError
    from fixedpoint.runs.run import execute

    with kept_clean(said.as_json), in_sentences():
        config = load(file, overrides, output)
    folder = output or run_folder(config.name)
    try:
        shown = contextlib.nullcontext() if said.quiet else shown_progress(console(stderr=True))
        with kept_clean(said.as_json), shown:
            outcome = execute(config, folder, fresh, second_interrupt_exits=True)
        for notice in outcome.notices:
            complain(notice)
        if outcome.story and not said.quiet and not said.as_json:
            console().print(outcome.story, markup=False)
        try:
            print_report(read_run(folder), quiet=said.quiet, as_json=said.as_json)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; every cell has its record") from None
    except BusyFolderError as error:
        complain(str(error))
        raise typer.Exit(FAILED) from None
    except WriteError as error:
        complain(f"cannot write {error.filename}: {error.strerror}")
        raise typer.Exit(FAILED) from None
    if not outcome.ok:
        raise typer.Exit(FAILED)
