"""Commands for tests."""

from __future__ import annotations

from typing import Annotated

import typer

from fixedpoint.registry import CommandError


def greet(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who is greeted.", show_default=False)],
    status: Annotated[int | None, typer.Option("--status", help="The exit status.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing.")] = False,
) -> int | None:
    """Say hello.

    \b
    Example:
      fixedpoint greet Ada
    """
    if name == "nobody":
        raise CommandError("nobody is there")
    if name == "somebody":
        raise CommandError("somebody has left", status=1)
    if name == "Ctrl-C":
        raise KeyboardInterrupt
    if name == "Porlock":
        raise KeyboardInterrupt("interrupted; 54 lines are written")
    if name == "bug":
        raise RuntimeError("a bug")
    if not quiet:
        typer.echo(f"hello {name}")
    return status


def odd(either: int | str) -> None:
    """Take what typer does not know."""
