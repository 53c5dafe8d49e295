"""Locks a run folder, so that two runs cannot write the same records."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fixedpoint.config.writing import WriteError, make_folder

__all__ = ["BusyFolderError", "locked"]

_NAME = "run.lock"
# The number of a process and a line feed.
_LONGEST = 32
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# Where Windows locks: beyond the content, since what it locks cannot be read.
_BEYOND = 2**20
_LINK, _FOREIGN = "is a link, wanted the lock of a run", "is there already and not the lock of a run"


class BusyFolderError(RuntimeError):
    """Another run is using the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder within a ``with`` block. The lock is released when the process ends, even if it is killed.

    The lock is the file ``run.lock``, which holds the number of the process, and is removed at the end.

    Parameters
    ----------
    folder
        The folder, created if it is missing.

    Raises
    ------
    BusyFolderError
        If another process holds the lock. The message names the process.
    WriteError
        If the folder cannot be written, its file system cannot lock files, or ``run.lock`` is something else than such
        a file: a link, a pipe, a file with another content.
    """
    make_folder(folder)
    path = folder / _NAME
    descriptor = _held(path, folder)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held: who has opened it meanwhile sees that it is no longer that file
        os.close(descriptor)


def _held(path: Path, folder: Path) -> int:
    """The descriptor of the lock, which this process now holds."""
    while True:
        _check_openable(path)
        try:
            descriptor = os.open(path, _FLAGS, 0o666)
        except OSError as error:
            why = _LINK if error.errno == errno.ELOOP else error.strerror  # a link that was made just now
            raise WriteError(error.errno, why, str(path)) from None
        try:
            _check_ours(descriptor, path)
            _lock(descriptor)
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            known = _holder(descriptor)
            os.close(descriptor)
            said = f"another run{known} is at work in {folder}; wait for it, or choose another folder"
            raise BusyFolderError(said) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EINVAL:
                raise
            said = "its file system cannot lock files; choose another folder"
            raise WriteError(errno.ENOLCK, said, str(folder)) from None
        os.close(descriptor)  # the run that held it has removed it


def _check_openable(path: Path) -> None:
    """Refuse links, which Windows would follow, and devices, to which opening alone may do something."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # nothing is there, or opening it says what is wrong
        return
    if not stat.S_ISREG(mode):
        raise WriteError(errno.EINVAL, _LINK if stat.S_ISLNK(mode) else _FOREIGN, str(path))


def _check_ours(descriptor: int, path: Path) -> None:
    """Refuse to write into a file that a run did not make, also if it bears another name elsewhere (a hard link)."""
    found = os.fstat(descriptor)
    content = os.pread(descriptor, _LONGEST + 1, 0) if stat.S_ISREG(found.st_mode) and hasattr(os, "pread") else b""
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or content.strip(b"0123456789\n"):
        raise WriteError(errno.EINVAL, _FOREIGN, str(path))


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    number = os.read(descriptor, _LONGEST).decode("ascii", "replace").strip()
    return f" (process {number})" if number.isdecimal() else ""


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            raise BlockingIOError from None
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
