"""``fixedpoint check``: the conformance suite for one solver."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fixedpoint.cli.sentences import FAILED, in_sentences

__all__ = ["check"]

_STYLES = {"passed": "green", "expected failure": "yellow"}


def check(
    solver: Annotated[str, typer.Argument(metavar="SOLVER", help="Name of a solver.", show_default=False)],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="OPTION=VALUE", help="Its options, e.g. memory=3.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check that a solver does what the library promises of solvers.

    Exit status 1 when a check fails. A solver of another library may be known to fail some: these are expected
    failures, and it is a failure when one of them passes.

    \b
    Examples:
      fixedpoint check anderson
      fixedpoint check anderson memory=3
      fixedpoint check chain accelerator=broyden
    """
    from rich.text import Text

    from fixedpoint.cli.tables import console, plain_table

    with in_sentences():
        from fixedpoint.config.single import component_config
        from fixedpoint.testing import check_solver

        report = check_solver(component_config("solver", solver, options or []))
    if as_json:
        rows = [
            {"name": row.name, "outcome": row.outcome, "passed": row.passed, "detail": row.detail}
            for row in report.rows
        ]
        typer.echo(json.dumps({"solver": solver, "passed": report.passed, "checks": rows}, indent=2))
    else:
        table = plain_table("check", "outcome", "detail")
        table.columns[0].no_wrap = True
        for row in report.rows:
            style = "bold red" if not row.passed else _STYLES.get(row.outcome, "dim")
            table.add_row(Text(row.name), Text(row.outcome, style=style), Text(row.detail))
        console().print(table)
        failed = sum(not row.passed for row in report.rows)
        known = sum(row.outcome == "expected failure" for row in report.rows)
        verdict = "all other checks passed" if known else "all checks passed"
        if failed:
            verdict = f"{failed} of {len(report.rows)} checks failed"
        if known:
            verdict = f"{known} known {'fault' if known == 1 else 'faults'}; {verdict}"
        typer.echo(f"\n{verdict}")
    if not report.passed:
        raise typer.Exit(FAILED)
