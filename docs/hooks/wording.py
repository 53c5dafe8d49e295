"""Docstrings and options as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from fixedpoint.config.describe import OptionRow

__all__ = ["markdown", "option_list"]


def option_list(rows: Iterable[OptionRow]) -> Iterator[str]:
    for row in rows:
        default = "required" if row.default is None else f"default {row.default}"
        allowed = f"{row.type}, {row.range}" if row.range else row.type
        yield f"`{row.name}`"
        yield f":   {markdown(row.help)}<br>"
        yield f"    *{markdown(allowed)}; {markdown(default)}*\n"


def markdown(text: str) -> str:
    """A docstring as Markdown; what is not code cannot be taken for markup."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    lines = text.splitlines()
    return "\n".join(line if line.startswith("    ") else _plain(line) for line in lines)


def _plain(line: str) -> str:
    parts = re.split(r"(``.*?``|`[^`]*`)", line)
    return "".join(
        p if p.startswith("`") else p.replace("<", "&lt;").replace("_", r"\_").replace("$", r"\$") for p in parts
    )
