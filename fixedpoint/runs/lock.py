"""Locks a run folder, so that two runs cannot write the same records."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["BusyFolderError", "locked"]


class BusyFolderError(RuntimeError):
    """Another run is using the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run folder within a ``with`` block. The lock is released when the process ends, even if it is killed.

    Parameters
    ----------
    folder
        The folder, created if it is missing.

    Raises
    ------
    BusyFolderError
        If another process holds the lock. The message names the process.
    OSError
        If the folder cannot be written, or its file system cannot lock files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / "run.lock.holder"
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        known = ""
        with suppress(OSError):
            known = f" (process {holder.read_text().strip()})"
        raise BusyFolderError(
            f"another run{known} is at work in {folder}; wait for it, or choose another folder"
        ) from None
    except NotImplementedError:
        raise OSError(errno.ENOLCK, "its file system cannot lock files; choose another folder", str(folder)) from None
    try:
        holder.write_text(f"{os.getpid()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
