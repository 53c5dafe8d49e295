"""Standard output and standard error: any text can be written to them, and what cannot be written is a sentence."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator

__all__ = ["guarded"]

_FAILED = 1


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within a ``with`` block, have the streams take any text, and end the program with a sentence if one is full.

    Characters that the encoding of a stream lacks are written as escapes. An error of the system that nothing else has
    caught ends the program with a sentence and status 1, too. A closed pipe is left to the caller.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            _drop_output()
            raise SystemExit(_FAILED) from None
        full = _broken_output()
        place = "standard output" if full is not None else str(error.filename or "")
        said = f"{place + ': ' if place else ''}{(full or error).strerror or error}"
        with contextlib.suppress(OSError):
            print(f"cannot write to {said}" if full is not None else f"cannot go on: {said}", file=sys.stderr)
        raise SystemExit(_FAILED) from None


def _broken_output() -> OSError | None:
    """The error of standard output if it is at fault: then what it holds back cannot be written either."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _drop_output()
        return error
    return None


def _drop_output() -> None:
    """Have nothing more written to standard output, so that Python does not fail at it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        target = os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, sys.stdout.fileno())
        os.close(target)
