"""Checks an output folder before anything is written: it must not hold files of somebody else that bear our names."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from fixedpoint.config.bounded import read_bytes
from fixedpoint.config.writing import WriteError

__all__ = ["check_folder", "holds_text", "same_content"]

# Bytes that tell what a file is.
_HEAD = 2**16


def same_content(path: Path, content: bytes) -> bool:
    """Return whether a file has this content."""
    try:
        return read_bytes(path, len(content)) == content
    except OSError:
        return False


def holds_text(path: Path, text: bytes) -> bool:
    """Return whether a text stands near the beginning of a file; False if it cannot be read."""
    try:
        return text in read_bytes(path, _HEAD, cut=True)
    except OSError:
        return False


def check_folder(
    folder: Path, names: re.Pattern[str], inputs: Iterable[Path], ours: Callable[[Path], bool], what: str
) -> None:
    """Refuse an output folder in which an input, or a file that nothing of ours has written, would be replaced.

    Parameters
    ----------
    folder
        The folder. One that does not exist is fine.
    names
        The names of the files and folders that are written into it, as paths from the folder.
    inputs
        Files that are read, and therefore never replaced.
    ours
        Whether the folder is one that the same command has written before, so that its files may be replaced.
    what
        Such a folder in words, e.g. ``"a run"``.

    Raises
    ------
    WriteError
        If a file would be replaced. The error names it.
    """
    place = os.path.realpath(folder)
    parents: dict[Path, str] = {}
    for path in inputs:
        parent = parents.setdefault(path.parent, "") or os.path.realpath(path.parent)
        parents[path.parent] = parent
        # Of a link both are meant: its own place, and that of the file.
        own = os.path.join(parent, path.name)
        for found in (own, os.path.realpath(path)) if os.path.islink(path) else (own,):
            inside = os.path.relpath(found, place)
            if names.fullmatch(inside):
                said = "it is what is read, and is not replaced; choose another output folder"
                raise WriteError(errno.EEXIST, said, str(folder / inside))
    try:
        present = sorted(name for name in os.listdir(place) if names.fullmatch(name))
    except (FileNotFoundError, NotADirectoryError):
        return  # making it will say what is wrong
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(folder)) from None
    if present and not ours(folder):
        said = f"it is there already, and the folder is not that of {what}; choose another output folder"
        raise WriteError(errno.EEXIST, said, str(folder / present[0]))
