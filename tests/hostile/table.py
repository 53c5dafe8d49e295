"""The table of hostile inputs: what an entry is, the sandbox it runs in, and what must hold of every one.

To add entries, write a module with functions that yield them and name it in ``test_table.py``. An entry prepares files
in a sandbox and is one command; everything else is checked alike: it ends in time and with a status of the program's
own, prints no traceback, writes nothing but into its output folder, executes nothing and opens no socket.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

__all__ = ["GOOD", "Entry", "Sandbox", "problems", "snapshot", "started"]

DRIVER = Path(__file__).with_name("driver.py")
SECONDS = 10
"""Seconds of the processor that a command may take, beyond what starting it takes."""
# On the wall: machines are shared, and a command that waits for a pipe takes none of the processor.
_PATIENCE = 120
STATUSES = (0, 1, 2)
GOOD = """\
name: study
tasks: [{name: linear-contraction, size: 4}]
solvers: [picard, anderson]
termination: {rtol: 1.0e-4}
"""


@dataclass(frozen=True)
class Sandbox:
    """The folders of one entry.

    Attributes
    ----------
    root
        Holds all others.
    """

    root: Path

    @property
    def work(self) -> Path:
        """The working directory."""
        return self.root / "work"

    @property
    def outside(self) -> Path:
        """Files of somebody else: ``precious.txt``, and the folder ``things``."""
        return self.root / "outside"

    @property
    def out(self) -> Path:
        """The only folder that may be written to."""
        return self.work / "out"

    @classmethod
    def made(cls, root: Path) -> Sandbox:
        """Return a new sandbox with a good run file."""
        box = cls(root)
        for folder in (box.work, box.outside / "things", root / "home"):
            folder.mkdir(parents=True)
        (box.outside / "precious.txt").write_text("precious\n")
        (box.outside / "things" / "note.txt").write_text("mine\n")
        (box.work / "study.yaml").write_text(GOOD)
        return box


@dataclass(frozen=True)
class Entry:
    """One hostile input.

    Attributes
    ----------
    name
        Its name among all entries.
    arguments
        The arguments of ``fixedpoint``, relative to the working directory.
    prepare
        Puts the files into the sandbox.
    statuses
        The exit statuses it may have.
    says
        A part of what it must print.
    environment
        Variables that are set.
    redirect
        How the shell is to redirect its streams, e.g. ``">/dev/full"``; such an entry runs in a process of its own.
    """

    name: str
    arguments: tuple[str, ...]
    prepare: Callable[[Sandbox], Any] = lambda box: None
    statuses: tuple[int, ...] = STATUSES
    says: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    redirect: str = ""

    @property
    def encoding(self) -> str:
        """The encoding of its streams."""
        return self.environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]

    @property
    def alone(self) -> bool:
        """Whether it cannot run in the process of the tests, or in one that has imported torch already."""
        return bool(self.redirect or self.environment)


def snapshot(box: Sandbox) -> dict[str, tuple[Any, ...]]:
    """What is in the sandbox outside of the output folder: kind, permissions and content of everything."""
    return dict(_seen(box.root, box.out))


def _seen(folder: Path, leave: Path) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for item in sorted(os.scandir(folder), key=lambda item: item.name):
        path = Path(item.path)
        if path == leave:
            # What the output folder is may not change where it was something else than a folder.
            kind = stat.S_IFMT(path.lstat().st_mode)
            if kind != stat.S_IFDIR:
                yield item.path, (kind, os.readlink(path) if path.is_symlink() else None)
            continue
        found = path.lstat()
        about: tuple[Any, ...] = (stat.filemode(found.st_mode), found.st_ino)
        if path.is_symlink():
            yield item.path, (*about, os.readlink(path))
        elif stat.S_ISDIR(found.st_mode):
            yield item.path, about
            yield from _seen(path, leave)
        elif stat.S_ISREG(found.st_mode):
            content = path.read_bytes() if found.st_size < 2**20 and found.st_mode & 0o400 else b""
            yield item.path, (*about, found.st_size, found.st_mtime_ns, content)
        else:
            yield item.path, about


def started(entry: Entry, box: Sandbox, python: str) -> subprocess.CompletedProcess[bytes]:
    """Run an entry in a process; what is written elsewhere, executed or connected to ends it with status 99."""
    environment = {
        **os.environ,
        "HOME": str(box.root / "home"),
        "MPLCONFIGDIR": matplotlib.get_configdir(),  # its cache of fonts, which takes a minute to make
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "100",
        "FIXEDPOINT_HOSTILE_ROOT": str(box.root),
        **entry.environment,
    }
    program = sys.executable if entry.alone else python
    command: list[str] = [program, str(DRIVER), str(SECONDS), *entry.arguments]
    if entry.redirect:
        command = ["sh", "-c", f'exec "$@" {entry.redirect}', "sh", *command]
    return subprocess.run(
        command,
        cwd=box.work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_PATIENCE,
        check=False,
    )


def problems(entry: Entry, status: int, said: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What does not hold of an entry that has ended."""
    found = []
    if status not in entry.statuses:
        found.append(f"status {status}, wanted one of {entry.statuses}")
    if "Traceback (most recent call last)" in said or "Exception ignored" in said:
        found.append("a traceback")
    if any((ord(c) < 32 and c not in "\n\t\r") or "\ud800" <= c <= "\udfff" for c in said):
        found.append("control characters in what it says")
    if entry.says not in said:
        found.append(f"does not say {entry.says!r}")
    if status and not said.strip() and not entry.redirect:
        found.append("fails without a word")
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if changed:
        found.append(f"changed {changed}")
    return found
