"""``fixedpoint check``: runs the conformance suite on one solver or gradient estimator."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fixedpoint.cli.output import kept_clean
from fixedpoint.cli.sentences import FAILED, in_sentences

__all__ = ["check"]

_STYLES = {"passed": "green", "expected failure": "yellow"}


def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a solver or gradient estimator.", show_default=False)
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="OPTION=VALUE", help="Its options, e.g. memory=3.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the conformance suite on a solver or a gradient estimator.

    The suite checks the promises that the library makes for every component of
    its kind. Exit status 1 if a check fails. Solvers of other libraries and
    approximate estimators may declare checks that they cannot pass. These are
    expected failures, and it is a failure if one of them passes.

    \b
    Examples:
      fixedpoint check anderson
      fixedpoint check anderson memory=3
      fixedpoint check chain accelerator=broyden
      fixedpoint check neumann terms=10
    """
    from rich.text import Text

    from fixedpoint.cli.tables import console, plain_table

    with kept_clean(as_json), in_sentences():
        from fixedpoint.config.single import component_config
        from fixedpoint.registry import Kind, registry
        from fixedpoint.testing import check_gradient, check_solver

        # A name that is neither is reported as an unknown solver.
        estimator = name in registry.names("gradient") and name not in registry.names("solver")
        kind: Kind = "gradient" if estimator else "solver"
        config = component_config(kind, name, options or [])
        report = check_gradient(config) if estimator else check_solver(config)
    if as_json:
        rows = [
            {"name": row.name, "outcome": row.outcome, "passed": row.passed, "detail": row.detail}
            for row in report.rows
        ]
        typer.echo(json.dumps({kind: name, "passed": report.passed, "checks": rows}, indent=2))
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
