"""Runs the fenced blocks of a documentation page in order, as a reader would.

- A block whose fence has ``title="some/file.py"`` is written to that file.
- A ``console`` block is run in a shell line by line: the text after ``$ `` is a command, the lines below it are its
  output. ``...`` matches anything, white space matches any white space. A command that fails must be followed by
  ``$ echo $?``.
- A ``python`` block is executed in a namespace shared by the page; a ``text`` block right after it is its output.

No other fenced blocks are allowed.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Block", "Reader", "blocks", "sections"]

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r'```(?P<language>\w*)(?: title="(?P<title>[^"]+)")?')
_MARK = "\x01"


@dataclass(frozen=True)
class Block:
    """One fenced block, with the page and line of its fence."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    """Return all fenced blocks of a page of the repository."""
    found: list[Block] = []
    lines = (ROOT / page).read_text().splitlines(keepends=True)
    opened: tuple[int, str, str] | None = None
    for number, line in enumerate(lines, start=1):
        if opened is not None and line.rstrip() == "```":
            found.append(Block(page, *opened, "".join(lines[opened[0] : number - 1])))
            opened = None
        elif opened is None and line.lstrip().startswith("```"):
            match = _FENCE.fullmatch(line.rstrip())
            assert match, f"{page}:{number}: a fence of another kind: {line.strip()}"
            opened = number, match["language"], match["title"] or ""
    assert opened is None, f"{page}: the fence of line {opened and opened[0]} is never closed"
    return found


def sections(page: str) -> dict[str, str]:
    """Return the text under every heading of a page, by heading without marks; ``#`` in a fence is not a heading."""
    found: dict[str, str] = {}
    heading, fenced = "", False
    for line in (ROOT / page).read_text().splitlines():
        fenced ^= line.startswith("```")
        if re.match("#+ ", line) and not fenced:
            heading = line.lstrip("#").strip().replace("`", "")
        found[heading] = found.get(heading, "") + line + "\n"
    return found


@dataclass
class Reader:
    """Runs the blocks of a page, keeping the folder, the environment and the Python namespace between them.

    Attributes
    ----------
    home
        The folder to start in, and the one that file titles are relative to.
    left_out
        Commands that are not run, with the reason.
    in_place_of
        Commands that are run in place of others.
    programs
        The folder of ``fixedpoint`` and ``python``.
    """

    home: Path
    left_out: Mapping[str, str] = field(default_factory=dict)
    in_place_of: Mapping[str, str] = field(default_factory=dict)
    programs: Path = Path(sys.executable).parent

    def __post_init__(self) -> None:
        self.folder = self.home
        self.namespace: dict[str, Any] = {"__name__": "__reader__"}
        self.printed: str | None = None
        self.environment = os.environ | {
            "PATH": os.pathsep.join([str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "COLUMNS": "80",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def follow(self, page: str) -> None:
        """Run every block of a page."""
        for block in blocks(page):
            self.carry_out(block)

    def write(self, block: Block) -> None:
        target = self.home / block.title
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.text)

    def carry_out(self, block: Block) -> None:
        printed, self.printed = self.printed, None
        if block.title:
            self.write(block)
        elif block.language == "python":
            self.printed = self._executed(block)
        elif block.language == "console":
            self._typed(block)
        elif block.language == "text" and printed is not None:
            _compare(block.where, block.text, printed)
        else:
            raise AssertionError(f"{block.where}: nobody carries out this block; give it a kind, or a title")

    def _executed(self, block: Block) -> str:
        # Blank lines in front make line numbers those of the page, so that a traceback points there.
        code = compile("\n" * block.line + block.text, str(ROOT / block.page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, self.namespace)
        return out.getvalue()

    def _typed(self, block: Block) -> None:
        commands = list(_commands(block))
        script = ""
        for command, _ in commands:
            done = ":" if command in self.left_out else self.in_place_of.get(command, command)
            script += f"{done}\n__status=$?; printf '{_MARK}%d\\n' $__status; (exit $__status)\n"
        script += f'printf \'%s\\n%s{_MARK}\' "$PWD" "$PYTHONPATH"\n'
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        parts = re.split(rf"{_MARK}(\d*)\n?", done.stdout)
        outputs, statuses, last = parts[0:-3:2], parts[1:-2:2], parts[-3]
        assert len(outputs) == len(commands), f"{block.where}: the shell ended early:\n{done.stdout}"
        folder, self.environment["PYTHONPATH"] = last.split("\n")
        self.folder = Path(folder)
        for index, ((command, expected), output, status) in enumerate(zip(commands, outputs, statuses, strict=True)):
            asked = index + 1 < len(commands) and commands[index + 1][0] == "echo $?"
            assert status == "0" or asked, f"{block.where}: $ {command}\nended with status {status}\n{output}"
            if expected and command not in self.left_out:
                _compare(f"{block.where}: $ {command}", expected, output)


def _commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield every command of a console block, without comments, and the output that the page shows for it."""
    command, output = "", ""
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = re.sub(r"\s{2,}#.*", "", line[2:].strip()), ""
        elif line.startswith("> ") and command.endswith("\\"):
            command = command[:-1] + line[2:].strip()
        else:
            assert command, f"{block.where}: a console block begins with a command after '$ '"
            output += line
    yield command, output


def _compare(where: str, expected: str, printed: str) -> None:
    wanted, got = (re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip("\n") + "\n" for text in (expected, printed))
    same = doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert same, f"{where}\nthe page shows:\n{wanted}\nwhat came:\n{got}"
