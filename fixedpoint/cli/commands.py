"""The group of all commands: the program's own, and those of plugins, which are looked up only if necessary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from fixedpoint.cli.output import kept_clean
from fixedpoint.cli.sentences import BAD_INPUT, INTERRUPTED, complain
from fixedpoint.cli.spelling import CheckedCommand

if TYPE_CHECKING:
    from fixedpoint.registry import Command

__all__ = ["Commands"]


class Commands(TyperGroup):
    """A group of commands that includes those of plugins.

    The program's own commands are found without the registry, which keeps them fast. Listing shows the summaries of the
    registry and imports no module of a plugin's command. A command that cannot be used reports the reason when it is
    called.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the program's own commands in the order of ``main.py``, then those of plugins, sorted."""
        self._ask()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of the given name, which may not be loaded yet; None if there is none."""
        if cmd_name not in self.commands:
            self._ask()
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command to call, loaded, with its name and its arguments."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.loaded() if isinstance(command, _Unloaded) else command, rest

    def _ask(self) -> None:
        """Add the commands of plugins."""
        from fixedpoint.registry import registry

        with kept_clean():
            commands = registry.commands()
        for name, command in commands.items():
            if name not in self.commands:
                self.add_command(_Unloaded(command), name)


class _Unloaded(TyperCommand):
    """A plugin's command that is not loaded: only its name and its summary."""

    def __init__(self, command: Command) -> None:
        summary = command.summary.rstrip(".")
        super().__init__(command.name, short_help=f"{summary[:1].upper()}{summary[1:]}.")  # as typer writes the others
        self.command = command

    def loaded(self) -> Any:
        """Return the loaded command; exit with a message and status 2 if it cannot be used."""
        from fixedpoint.core.foreign import brief, guarded
        from fixedpoint.registry.faults import LoadError

        name = self.command.name
        # typer builds a command from a function only as part of an app.
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        try:
            with kept_clean(), guarded():
                alone.command(name, cls=_Loaded)(self.command.load())
                found = get_command(alone)
        except Exception as error:  # third-party code may raise anything
            lacks = isinstance(error, ImportError) and self.command.missing()
            said = error.reason if isinstance(error, LoadError) else brief(error)
            complain(str(error) if lacks else f"the command {name!r} of {self.command.origin()} cannot be used: {said}")
            raise typer.Exit(BAD_INPUT) from None
        found.no_args_is_help = any(parameter.required for parameter in found.params)
        return found


class _Loaded(CheckedCommand):
    """A plugin's command. What it returns is the exit status, and a CommandError becomes a line on stderr."""

    def invoke(self, ctx: Any) -> None:
        """Call the command and exit with its status."""
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
