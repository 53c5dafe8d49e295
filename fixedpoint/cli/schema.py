"""``fixedpoint schema``: writes the JSON schema of run files, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fixedpoint.cli.output import kept_clean
from fixedpoint.cli.sentences import FAILED, complain

__all__ = ["schema"]


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write.  [default: stdout]")
    ] = None,
) -> None:
    """Write the JSON schema of run files.

    Editors use it to complete and check run files. It contains the installed
    components, so write it again after installing a plugin.

    \b
    Example:
      fixedpoint schema --output run.schema.json
    and as the first line of a run file:
      # yaml-language-server: $schema=run.schema.json
    """
    from fixedpoint.config.schema import run_file_schema
    from fixedpoint.config.writing import WriteError, write_atomically

    with kept_clean():
        text = json.dumps(run_file_schema(), indent=1) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        write_atomically(output, text.encode())
    except WriteError as error:
        complain(f"cannot write {error.filename}: {error.strerror}")
        raise typer.Exit(FAILED) from None
    typer.echo(f"wrote {output}")
