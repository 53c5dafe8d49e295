"""Reports failures of commands as lines on stderr and an exit status, instead of tracebacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "complain", "in_sentences"]

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def complain(text: str) -> None:
    """Print a message to stderr, neither wrapped nor coloured, so that tools can read it.

    What it quotes may come from a file: control characters become escapes.
    """
    from fixedpoint.execution.plain import printable

    typer.echo(printable(text), err=True)


@contextmanager
def in_sentences() -> Iterator[None]:
    """Within a ``with`` block, turn errors that the user can correct into a message and exit status 2."""
    from fixedpoint.config.errors import ConfigError
    from fixedpoint.config.files import DamagedError
    from fixedpoint.registry import RegistryError

    try:
        yield
    except (ConfigError, DamagedError, RegistryError, ImportError) as error:
        complain(str(error))
        raise typer.Exit(BAD_INPUT) from None
