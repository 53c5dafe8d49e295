"""Kinds of components as they are typed: ``solver``, or ``solvers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from fixedpoint.cli.sentences import BAD_INPUT, complain

if TYPE_CHECKING:
    from fixedpoint.registry import Kind

__all__ = ["as_kind"]


def as_kind(text: str) -> Kind:
    """The kind of that name, singular or plural; a sentence and exit status 2 for any other."""
    from fixedpoint.core.options import nearest
    from fixedpoint.registry import KINDS

    for kind in KINDS:
        if text in (kind, f"{kind}s"):
            return kind
    complain(f'unknown kind "{text}"; {nearest(text, KINDS)}')
    raise typer.Exit(BAD_INPUT)
