"""One run at a time in a folder: two that write the same records would take each other's work."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["BusyFolderError", "locked"]


class BusyFolderError(RuntimeError):
    """Another run is at work in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder; the lock goes with the process, however it ends.

    Raises
    ------
    BusyFolderError
        When another process holds it, naming that process.
    OSError
        When the folder cannot be written.
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
