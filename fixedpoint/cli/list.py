"""``fixedpoint list``: lists every component and command, and the plugins that cannot be used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fixedpoint.cli.kinds import as_listed
from fixedpoint.cli.output import kept_clean

if TYPE_CHECKING:
    from fixedpoint.registry import Command, Component
    from fixedpoint.registry.faults import Broken

__all__ = ["list_components"]


def list_components(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="solver, gradient, task, executor or command; default: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List solvers, gradients, tasks, executors and commands.

    Plugins that cannot be used are listed with the reason.

    \b
    Examples:
      fixedpoint list
      fixedpoint list solver
      fixedpoint list --json
    """
    from fixedpoint.registry import KINDS, registry

    wanted = None if kind is None else as_listed(kind)
    with kept_clean(as_json):
        found: dict[str, list[Component | Command]] = {
            each: list(registry.components(each).values()) for each in KINDS if wanted in (None, each)
        }
        if wanted in (None, "command"):
            found["command"] = list(registry.commands().values())
        broken = registry.broken()
        listed = [_plain(each, component) for each, components in found.items() for component in components]
    if as_json:
        typer.echo(json.dumps({"components": listed, "broken": [vars(row) for row in broken]}, indent=2))
    else:
        _print(found, broken)


def _plain(kind: str, component: Component | Command) -> dict[str, Any]:
    missing = component.missing()
    return {
        "kind": kind,
        "name": component.name,
        "aliases": list(component.names[1:]),
        "summary": component.summary,
        "references": list(component.references),
        "source": component.source,
        "version": component.version,
        "missing": list(missing),
        "install": component.install_command() if missing else None,
    }


def _print(found: dict[str, list[Component | Command]], broken: list[Broken]) -> None:
    from rich.text import Text

    from fixedpoint.cli.tables import console, plain_table

    out = console()
    for kind, components in found.items():
        table = plain_table(f"{kind}s", "", "from")
        table.columns[0].no_wrap = True
        table.columns[0].min_width = 13
        table.columns[1].ratio = 1
        for component in components:
            summary = Text(component.summary)
            if component.names[1:]:
                summary.append(f" (also called {', '.join(component.names[1:])})")
            if component.missing():
                needs = f"needs {', '.join(component.missing())}: {component.install_command()}"
                summary.append(f"\n{needs}", style="yellow")
            table.add_row(Text(component.name, style="bold"), summary, Text(component.source or "this process"))
        table.expand = True
        if components:
            out.print(table)
            out.print()
    if broken:
        table = plain_table("cannot be used", "reason")
        for row in broken:
            table.add_row(Text(f"{row.kind} {row.name}\n{row.source}".strip()), Text(row.reason, style="red"))
        out.print(table)
        out.print()
    out.print("`fixedpoint show NAME` shows the options of one, `fixedpoint COMMAND --help` those of a command.")
