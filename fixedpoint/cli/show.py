"""``fixedpoint show``: shows what a component is and which options it has."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from fixedpoint.cli.kinds import as_kind
from fixedpoint.cli.output import kept_clean
from fixedpoint.cli.sentences import BAD_INPUT, complain, in_sentences

if TYPE_CHECKING:
    from rich.text import Text

    from fixedpoint.config.describe import Description, OptionRow
    from fixedpoint.registry import Kind

__all__ = ["show"]


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a component.", show_default=False)],
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="Kind of the component, if several have this name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a component is, with its options, ranges and defaults.

    \b
    Examples:
      fixedpoint show anderson
      fixedpoint show sampling --json
    """
    with kept_clean(as_json), in_sentences():
        kinds = _kinds_of(name) if kind is None else [as_kind(kind)]
        from fixedpoint.config.describe import describe

        found = [describe(each, name) for each in kinds]
    if as_json:
        typer.echo(json.dumps([_plain(each) for each in found], indent=2))
    else:
        for each in found:
            _print(each)


def _kinds_of(name: str) -> list[Kind]:
    """The kinds that have a component of that name; exit with a message and status 2 if there are none."""
    from fixedpoint.core.options import nearest
    from fixedpoint.registry import KINDS, registry
    from fixedpoint.registry.faults import unknown

    kinds = [kind for kind in KINDS if name in registry.names(kind)]
    if kinds:
        return kinds
    known = [each for kind in KINDS for each in registry.names(kind)]
    complain(unknown("component", name, f'"{name}"', nearest(name, known), registry.broken()))
    raise typer.Exit(BAD_INPUT)


def _plain(found: Description) -> dict[str, object]:
    component = found.component
    return {
        "kind": found.kind,
        "name": component.name,
        "summary": component.summary,
        "description": found.text,
        "aliases": list(component.aliases),
        "references": list(component.references),
        "source": component.source,
        "version": component.version,
        "options": [dataclasses.asdict(row) for row in found.options],
        "choices": {title: [dataclasses.asdict(row) for row in rows] for title, rows in found.choices.items()},
        "example": found.example,
    }


def _print(found: Description) -> None:
    from rich.text import Text

    from fixedpoint.cli.tables import aligned, console

    out = console()
    component = found.component
    source = f"{component.source} {component.version}".strip() or "this process"
    also = f", also called {', '.join(component.aliases)}" if component.aliases else ""
    out.print(Text.assemble((component.name, "bold"), f"  {found.kind} from {source}{also}"))
    out.print(Text(f"\n{found.text or component.summary}"))
    for title, rows in (("Options", found.options), *found.choices.items()):
        if rows:
            out.print(Text(f"\n{title}", style="bold"))
            out.print(aligned([(row.name, _explained(row)) for row in rows]))
    if component.references:
        out.print(Text("\nReferences", style="bold"))
        for reference in component.references:
            out.print(Text(f"  {reference}"))
    out.print(Text("\nIn a run file", style="bold"))
    out.print(Text(f"  {found.example}"), soft_wrap=True)


def _explained(row: OptionRow) -> Text:
    """The help, type, range and default of one option."""
    from rich.text import Text

    default = "required" if row.default is None else f"default {row.default}"
    allowed = f"{row.type}, {row.range}" if row.range else row.type
    facts = f"{allowed}; {default}"
    return Text.assemble(f"{row.help}\n" if row.help else "", (facts, "dim"))
