"""Writes files: all of one or nothing of it, and never through a link.

Everything that the library writes goes through :func:`write_atomically`, so that what holds of it holds of every file.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["TEMPORARY", "WriteError", "make_folder", "remove_leftovers", "write_atomically"]

TEMPORARY = ".*.fixedpoint-part"
"""Glob pattern of temporary files, which remain only if the process that wrote them was killed."""

# Absent on Windows, where making a link takes privileges that a hostile file does not have.
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class WriteError(OSError):
    """A file cannot be written. ``filename`` is the file that was wanted, ``strerror`` says why."""


def write_atomically(
    path: Path, content: bytes | Iterable[bytes], within: Path | None = None, replace: bool = True
) -> None:
    """Write a file atomically: a reader sees the old content or the new content, never a part of it.

    The content goes to a new file, which then takes the name. A link that bears the name is replaced; the file that it
    points to is left as it is. Devices, pipes and sockets are not replaced.

    Parameters
    ----------
    path
        The file. Missing folders are created.
    content
        Its new content, or the pieces of it, which need not be in memory at once.
    within
        The folder that must not be left: folders between it and the file must not be links.
    replace
        Whether an existing file is replaced.

    Raises
    ------
    WriteError
        If any part of writing fails. The error names ``path``, not the temporary file.
    FileExistsError
        If there is a file or link of this name, and ``replace`` is False.
    """
    temporary: Path | None = None
    try:
        make_folder(path.parent, within)
        _check_replaceable(path)
        temporary, descriptor = _created(path)
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines((content,) if isinstance(content, bytes) else content)
            stream.flush()
            os.fsync(stream.fileno())  # before the rename: a crash must not leave the name with no content
        if replace or not _linked(temporary, path):
            os.replace(temporary, path)
    except BaseException as error:  # also an interrupt must not leave the temporary file
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, FileExistsError) and not replace:
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise WriteError(error.errno, error.strerror, str(path)) from error
        if isinstance(error, ValueError):  # a NUL character in the name
            raise WriteError(errno.EINVAL, str(error), str(path)) from error
        raise


def make_folder(path: Path, within: Path | None = None) -> None:
    """Make a folder and the folders around it, where they are missing.

    Parameters
    ----------
    path
        The folder.
    within
        The folder that must not be left: folders between it and ``path`` must not be links.

    Raises
    ------
    WriteError
        If it cannot be made, or if one of those is a link. The error names ``path``.
    """
    try:
        if within is not None and path != within:
            for inner in _between(within, path):
                if inner.is_symlink():
                    raise OSError(errno.ELOOP, f"{inner} is a link, through which nothing is written")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(error.errno, error.strerror, str(path)) from None
    except ValueError as error:  # a NUL character in the name
        raise WriteError(errno.EINVAL, str(error), str(path)) from None


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a process that was killed from a folder, unless the folder is a link."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for leftover in folder.glob(TEMPORARY):
        if stat.S_ISREG(leftover.lstat().st_mode):
            leftover.unlink(missing_ok=True)


def _created(path: Path) -> tuple[Path, int]:
    """A new file beside ``path``, and its descriptor. A file or link of that name would be an error."""
    shown = path.name.encode(errors="surrogateescape")[:100].decode(errors="ignore")  # names have at most 255 bytes
    temporary = path.with_name(f".{shown}.{os.getpid()}-{secrets.token_hex(4)}.fixedpoint-part")
    return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o666)


def _check_replaceable(path: Path) -> None:
    """Refuse to replace a device, pipe or socket, and a link to one: ``/dev/stdout`` is a link of the system's."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found):
        if os.readlink(path).startswith("/proc/"):
            raise OSError(errno.EINVAL, "is a link of the system, wanted a file")
        try:
            found = path.stat().st_mode
        except OSError:
            return  # a link to nothing, or to itself
        if stat.S_ISDIR(found):
            return
    if not stat.S_ISREG(found):
        what = "a folder" if stat.S_ISDIR(found) else "a device, pipe or socket"
        raise OSError(errno.EISDIR if stat.S_ISDIR(found) else errno.EINVAL, f"is {what}, wanted a file")


def _linked(temporary: Path, path: Path) -> bool:
    """Give the file its name, and fail where the name is taken, also if it was taken just now.

    False where the file system has no links; then it was free a moment ago.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            return False
        raise
    temporary.unlink()
    return True


def _between(root: Path, path: Path) -> list[Path]:
    """The folders below ``root`` on the way to ``path``, with ``path`` itself, from the outermost on."""
    parts = path.relative_to(root).parts
    if ".." in parts:
        raise OSError(errno.EINVAL, f"leaves {root}")
    return [root.joinpath(*parts[: count + 1]) for count in range(len(parts))]
