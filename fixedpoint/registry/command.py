"""Command: what the registry knows of a command of the program before it is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fixedpoint.registry.entry import RegistryEntry

__all__ = ["Command", "CommandError"]

_NAME = re.compile("[a-z][a-z0-9]*(-[a-z0-9]+)*")


class CommandError(Exception):
    """A command cannot do what was asked; the program says the sentence on stderr and ends with ``status``."""

    def __init__(self, sentence: str, status: int = 2) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Command(RegistryEntry):
    """A command of the program, brought by a plugin.

    Its function is annotated as ``typer`` expects it, and has the help text with examples as its docstring. It returns
    the exit status (None: 0), raises :class:`CommandError` for what the user can mend, and may raise
    ``KeyboardInterrupt`` with a sentence of its own. Its module is imported whenever the command is asked for its
    help, so what is heavy is imported in the function.

    Attributes
    ----------
    name
        What is typed after ``fixedpoint``: lower-case letters, digits and single hyphens, e.g. ``"invert"``.
    factory
        Import string ``"package.module:function"``, loaded on first use, or the function itself.
    summary
        One line for ``fixedpoint --help`` and ``fixedpoint list``.
    references
        Papers.
    requires
        Import names the command needs beyond what the base installation brings, e.g. ``("diffusers",)``.
    extra
        The extra of the distribution the command comes from that brings them, e.g. ``"diffusion"``.

    Raises
    ------
    ValueError
        For a name that cannot be typed.
    """

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"a command's name must be lower-case letters, digits and single hyphens, got {self.name!r}"
            )
