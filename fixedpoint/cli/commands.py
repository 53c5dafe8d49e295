"""The program's commands: its own, and those that plugins bring, which are asked for when they are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from fixedpoint.cli.sentences import BAD_INPUT, INTERRUPTED, complain
from fixedpoint.cli.spelling import Spelled

if TYPE_CHECKING:
    from fixedpoint.registry import Command

__all__ = ["Commands"]


class Commands(TyperGroup):
    """A group that knows the commands of plugins, too.

    A command of its own is found without them. Listing shows the summaries that plugins give, and imports no
    command's module; one that cannot be used says so when it is called.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Its own in the order they were given, then those of plugins by name."""
        self._ask()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, perhaps not loaded yet; None when there is none."""
        if cmd_name not in self.commands:
            self._ask()
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, loaded."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.loaded() if isinstance(command, _Unloaded) else command, rest

    def _ask(self) -> None:
        from fixedpoint.registry import registry

        for name, command in registry.commands().items():
            if name not in self.commands:
                self.add_command(_Unloaded(command), name)


class _Unloaded(TyperCommand):
    """What lists show of a plugin's command."""

    def __init__(self, command: Command) -> None:
        super().__init__(command.name, short_help=command.summary)
        self.command = command

    def loaded(self) -> Any:
        """The command itself; a sentence and exit status 2 where it cannot be used."""
        name = self.command.name
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        try:
            alone.command(name, cls=_Loaded)(self.command.load())
            found = get_command(alone)
        except Exception as error:  # a stranger's module may raise anything
            lacks = isinstance(error, ImportError) and self.command.missing()
            said = " ".join(f"{type(error).__name__}: {error}".split())
            complain(str(error) if lacks else f"the command {name!r} of {self.command.origin()} cannot be used: {said}")
            raise typer.Exit(BAD_INPUT) from None
        found.no_args_is_help = any(parameter.required for parameter in found.params)
        return found


class _Loaded(Spelled):
    """A plugin's command: what it returns is the exit status, what it raises a line on stderr."""

    def invoke(self, ctx: Any) -> None:
        """Carry it out."""
        from fixedpoint.registry import CommandError

        try:
            status = super().invoke(ctx)
        except CommandError as error:
            complain(str(error))
            raise typer.Exit(error.status) from None
        except KeyboardInterrupt as interrupt:
            complain(str(interrupt) or "interrupted")
            raise typer.Exit(INTERRUPTED) from None
        raise typer.Exit(status or 0)
