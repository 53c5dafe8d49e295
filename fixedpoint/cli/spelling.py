"""Options that are none: what was meant, perhaps, and how an option of a file or a component is written."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from fixedpoint.cli.sentences import BAD_INPUT, complain

__all__ = ["Spelled"]


class Spelled(TyperCommand):
    """A command that tells an option it does not have in a sentence, exit status 2.

    ``--termination.rtol=1e-4`` is how other programs set what here is an override, ``termination.rtol=1e-4``: it is
    refused with the line to type, since a misspelt option must not become an override.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Look at the options first."""
        known = {name: each for each in self.get_params(ctx) for name in (*each.opts, *each.secondary_opts)}
        found = _unknown(args, known)
        if found is not None:
            complain(self._sentence(ctx.command_path, args, found, known))
            raise typer.Exit(BAD_INPUT)
        return super().parse_args(ctx, args)

    def _sentence(self, program: str, args: Sequence[str], index: int, known: Mapping[str, Any]) -> str:
        name = args[index].partition("=")[0]
        long = [each for each in known if each.startswith("--")]
        overrides = len(name.lstrip("-")) > 1 and any(
            each.nargs == -1 and "=" in (each.metavar or "") for each in self.params
        )
        # Where it may be an override only a slip of a letter or two is an option: --threads is not --fresh.
        near = difflib.get_close_matches(f"--{name.lstrip('-')}", long, n=1, cutoff=0.8 if overrides else 0.6)
        if near and not (overrides and ("." in name or "[" in name)):
            return f'there is no option {name}; did you mean "{near[0]}"?'
        if overrides:
            first = next((each for each in self.params if each.nargs == 1 and each.param_type_name == "argument"), None)
            line = f"{program} {shlex.join(_as_overrides(args, known, (first and first.metavar) or ''))}"
            return f"there is no option {name}; what it sets is written without dashes: {line}"
        return f"there is no option {name}; known: {', '.join(sorted(long))}"


def _unknown(args: Sequence[str], known: Mapping[str, Any]) -> int | None:
    """The place of the first option that is none."""
    index = 0
    while index < len(args) and args[index] != "--":
        arg = args[index]
        name = arg.partition("=")[0]
        if arg.startswith("--"):
            if name not in known:
                return index
        elif arg.startswith("-") and len(arg) > 2:
            # Letters in one, or a letter with its value: but -output is no folder named utput.
            if f"-{name}" in known or arg[:2] not in known:
                return index
        elif arg.startswith("-") and len(arg) == 2 and arg not in known:
            return index
        if arg in known and not getattr(known[arg], "is_flag", False):
            index += 1  # its value, whatever it looks like
        index += 1
    return None


def _as_overrides(args: Sequence[str], known: Mapping[str, Any], first: str) -> list[str]:
    """The arguments, those that are no options without their dashes: ``--memory 3`` and ``--memory=3`` alike.

    Overrides stand behind the ``first`` argument, which one of them would be taken for.
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
