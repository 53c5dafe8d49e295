"""Every failure a sentence: what goes wrong in a command ends as lines on stderr and an exit status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "complain", "in_sentences"]

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def complain(text: str) -> None:
    """Lines for stderr, as they are: never wrapped, never coloured, so that tools can read them."""
    typer.echo(text, err=True)


@contextmanager
def in_sentences() -> Iterator[None]:
    """Turn the errors that a user can mend into a sentence and exit status 2."""
    from fixedpoint.config.errors import ConfigError
    from fixedpoint.config.files import DamagedError
    from fixedpoint.registry import RegistryError

    try:
        yield
    except (ConfigError, DamagedError, RegistryError, ImportError) as error:
        complain(str(error))
        raise typer.Exit(BAD_INPUT) from None
