"""The program ``fixedpoint`` with its own commands. ``fixedpoint.cli.commands`` adds those of plugins."""

from __future__ import annotations

from typing import Annotated

import typer

import fixedpoint
from fixedpoint.cli.check import check
from fixedpoint.cli.commands import Commands
from fixedpoint.cli.doctor import doctor
from fixedpoint.cli.init import init
from fixedpoint.cli.list import list_components
from fixedpoint.cli.report import report
from fixedpoint.cli.run import run
from fixedpoint.cli.schema import schema
from fixedpoint.cli.show import show
from fixedpoint.cli.spelling import CheckedCommand
from fixedpoint.cli.streams import guarded

__all__ = ["app", "main"]

app = typer.Typer(
    name="fixedpoint",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="`fixedpoint COMMAND --help` shows examples.",
)
app.command("run", cls=CheckedCommand, no_args_is_help=True)(run)
app.command("list", cls=CheckedCommand)(list_components)
app.command("show", cls=CheckedCommand, no_args_is_help=True)(show)
app.command("report", cls=CheckedCommand, no_args_is_help=True)(report)
app.command("check", cls=CheckedCommand, no_args_is_help=True)(check)
app.command("init", cls=CheckedCommand)(init)
app.command("schema", cls=CheckedCommand)(schema)
app.command("doctor", cls=CheckedCommand)(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fixedpoint {fixedpoint.__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fixed points z = f(z): compare solvers on tasks, from a YAML file.

    \b
    fixedpoint list               list what can be compared
    fixedpoint show anderson      show its options
    fixedpoint init study.yaml    write a first run file
    fixedpoint run study.yaml     compare, write a report
    fixedpoint report runs/study  write the report again
    fixedpoint check anderson     run the conformance suite
    fixedpoint doctor             show versions and plugins
    """


def main() -> None:
    """Run the program."""
    with guarded():
        app()
