"""Explains unknown options: suggests the nearest one, or shows how to write an override."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from fixedpoint.cli.sentences import BAD_INPUT, complain

__all__ = ["CheckedCommand"]


class CheckedCommand(TyperCommand):
    """A command that explains unknown options in one line and exits with status 2.

    Users of other programs may type ``--termination.rtol=1e-4`` for the override ``termination.rtol=1e-4``. It is
    refused, and the message shows the line to type. It is not accepted as an override, because then every misspelt
    option would become one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, after checking for unknown options."""
        known = {name: each for each in self.get_params(ctx) for name in (*each.opts, *each.secondary_opts)}
        found = _unknown(args, known)
        if found is not None:
            complain(self._sentence(ctx.command_path, args, found, known))
            raise typer.Exit(BAD_INPUT)
        return super().parse_args(ctx, args)

    def _sentence(self, program: str, args: Sequence[str], index: int, known: Mapping[str, Any]) -> str:
        """The message on the unknown option ``args[index]``."""
        name = args[index].partition("=")[0]
        long = [each for each in known if each.startswith("--")]
        overrides = len(name.lstrip("-")) > 1 and any(
            each.nargs == -1 and "=" in (each.metavar or "") for each in self.params
        )
        # If it may be an override, only an option with one or two other letters is suggested: --threads is not --fresh.
        near = difflib.get_close_matches(f"--{name.lstrip('-')}", long, n=1, cutoff=0.8 if overrides else 0.6)
        if near and not (overrides and ("." in name or "[" in name)):
            return f'there is no option {name}; did you mean "{near[0]}"?'
        if overrides:
            first = next((each for each in self.params if each.nargs == 1 and each.param_type_name == "argument"), None)
            line = f"{program} {shlex.join(_as_overrides(args, known, (first and first.metavar) or ''))}"
            return f"there is no option {name}; what it sets is written without dashes: {line}"
        return f"there is no option {name}; known: {', '.join(sorted(long))}"


def _unknown(args: Sequence[str], known: Mapping[str, Any]) -> int | None:
    """The index of the first unknown option; None if there is none."""
    index = 0
    while index < len(args) and args[index] != "--":
        arg = args[index]
        name = arg.partition("=")[0]
        if arg.startswith("--"):
            if name not in known:
                return index
        elif arg.startswith("-") and len(arg) > 2:
            # Joined short options, or one with its value. A long option with one dash is a mistake: click would read
            # -output as -o with the value "utput".
            if f"-{name}" in known or arg[:2] not in known:
                return index
        elif arg.startswith("-") and len(arg) == 2 and arg not in known:
            return index
        if arg in known and not getattr(known[arg], "is_flag", False):
            index += 1  # the next argument is its value, even if it begins with a dash
        index += 1
    return None


def _as_overrides(args: Sequence[str], known: Mapping[str, Any], first: str) -> list[str]:
    """The arguments with unknown options rewritten as overrides: ``--memory 3`` and ``--memory=3`` as ``memory=3``.

    Overrides are moved behind the argument named ``first``; before it, one of them would be taken for that argument.
    """
    written: list[str] = []
    waiting: list[str] | None = [] if first else None
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        if _unknown([arg], known) is None:
            written.append(arg)
            if arg in known and not getattr(known[arg], "is_flag", False) and rest:
                written.append(rest.pop(0))
            elif waiting is not None and not arg.startswith("-"):
                written, waiting = [*written, *waiting], None
            continue
        name, equals, value = arg.lstrip("-").partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "VALUE"
        (written if waiting is None else waiting).append(f"{name}={value}")
    return written if waiting is None else [*written, first, *waiting]
