"""Parses kinds of components as typed on the command line: ``solver`` or ``solvers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

import typer

from fixedpoint.cli.sentences import BAD_INPUT, complain

if TYPE_CHECKING:
    from fixedpoint.registry import Kind

__all__ = ["as_kind", "as_listed"]

K = TypeVar("K", bound=str)


def as_kind(text: str) -> Kind:
    """Return the kind of the given name, singular or plural; exit with a message and status 2 if there is none."""
    from fixedpoint.registry import KINDS

    return _among(text, KINDS)


def as_listed(text: str) -> Kind | Literal["command"]:
    """Return the kind of the given name as :func:`as_kind` does, where ``command`` counts as a kind, too."""
    from fixedpoint.registry import KINDS

    return _among(text, (*KINDS, "command"))


def _among(text: str, kinds: tuple[K, ...]) -> K:
    from fixedpoint.core.options import nearest

    for kind in kinds:
        if text in (kind, f"{kind}s"):
            return kind
    complain(f'unknown kind "{text}"; {nearest(text, kinds)}')
    raise typer.Exit(BAD_INPUT)
