"""The registry entry of a command of the program, readable without importing the command's module."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fixedpoint.registry.entry import RegistryEntry

__all__ = ["NAME", "Command", "CommandError"]

NAME = re.compile("[a-z][a-z0-9]*(-[a-z0-9]+)*")
"""The form of the names of components and commands."""


class CommandError(Exception):
    """A command cannot do what was asked. The program prints the message to stderr and exits with ``status``.

    Parameters
    ----------
    sentence
        The message.
    status
        The exit status of the program.
    """

    def __init__(self, sentence: str, status: int = 2) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Command(RegistryEntry):
    """A command of the program, brought by a plugin.

    Its function has the annotations that ``typer`` expects, and a docstring with the help text and examples. It returns
    the exit status, where None means 0. It raises :class:`CommandError` for mistakes that the user can correct, and may
    raise ``KeyboardInterrupt`` with a message of its own. ``fixedpoint NAME --help`` imports the module of the
    function, so heavy imports belong inside the function.

    Attributes
    ----------
    name
        What the user types after ``fixedpoint``: lower-case letters, digits and single hyphens, e.g. ``"invert"``.
    factory
        Import string ``"package.module:function"``, loaded on first use, or the function itself.
    summary
        One line for ``fixedpoint --help`` and ``fixedpoint list``.
    references
        The papers it implements, e.g. ``("Anderson 1965",)``.
    requires
        Import names that the command requires in addition to the base installation, e.g. ``("diffusers",)``.
    extra
        The extra that installs ``requires``, e.g. ``"diffusion"``, of the distribution that brings the command.
    source, version
        Name and version of the distribution that brings the command. The registry sets both.
    kind
        ``"command"``, which the registry sets, too.

    Raises
    ------
    ValueError
        If ``name`` has any other form.
    """

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"a command's name must be lower-case letters, digits and single hyphens, got {self.name!r}"
            )
