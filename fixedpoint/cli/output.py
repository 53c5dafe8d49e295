"""Keeps standard output for what the program itself prints, such as JSON that another program reads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

__all__ = ["kept_clean"]


@contextmanager
def kept_clean(wanted: bool = True) -> Iterator[None]:
    """Within a ``with`` block, what code of plugins and tasks prints goes to standard error, if ``wanted``.

    That holds for Python's ``print``, for libraries that write to the descriptor of standard output, and for child
    processes that are started within the block.
    """
    if not wanted:
        yield
        return
    with redirect_stdout(sys.stderr), _descriptor():
        yield


@contextmanager
def _descriptor() -> Iterator[None]:
    """Let the descriptor of standard output be that of standard error."""
    _flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed: nothing can be spoilt, or nothing helped
        yield
        return
    try:
        yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)


def _flush() -> None:
    """Write out what Python and the C library have not written yet."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.__stdout__.flush()  # type: ignore[union-attr]
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows has no library of this name
        ctypes.CDLL(None).fflush(None)
