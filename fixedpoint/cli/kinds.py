"""Kinds of components as they are typed: ``solver``, or ``solvers``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

import typer

from fixedpoint.cli.sentences import BAD_INPUT, complain

if TYPE_CHECKING:
    from fixedpoint.registry import Kind

__all__ = ["as_kind", "as_listed"]

K = TypeVar("K", bound=str)


def as_kind(text: str) -> Kind:
    """The kind of that name, singular or plural; a sentence and exit status 2 for any other."""
    from fixedpoint.registry import KINDS

    return _among(text, KINDS)


def as_listed(text: str) -> Kind | Literal["command"]:
    """The same, or ``command``."""
    from fixedpoint.registry import KINDS

    return _among(text, (*KINDS, "command"))


def _among(text: str, kinds: tuple[K, ...]) -> K:
    from fixedpoint.core.options import nearest

    for kind in kinds:
        if text in (kind, f"{kind}s"):
            return kind
    complain(f'unknown kind "{text}"; {nearest(text, kinds)}')
    raise typer.Exit(BAD_INPUT)
