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


class _Output(io.TextIOWrapper):
    """Standard output that remembers its first error: who catches an error later cannot see which file it is of.

    It cannot be asked again, either. An unbuffered stream holds nothing back, and a buffer drops what is longer than
    itself.
    """

    error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.error = self.error or error
            raise


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within a ``with`` block, have the streams take any text, and end the program with a sentence if one is full.

    Characters that the encoding of a stream lacks are written as escapes. An error of the system that nothing else has
    caught ends the program with a sentence and status 1, too. A closed pipe is left to the caller.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with _watched_output() as output:
        try:
            try:
                yield
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise SystemExit(_FAILED) from None
            full = output.error if output is not None else None
            place = "standard output" if full is not None else _place(error)
            said = f"{place + ': ' if place else ''}{(full or error).strerror or error}"
            with contextlib.suppress(OSError):
                print(f"cannot write to {said}" if full is not None else f"cannot go on: {said}", file=sys.stderr)
            raise SystemExit(_FAILED) from None


def _place(error: OSError) -> str:
    """The file that an error is of; empty if that is not known."""
    if error.filename is None:
        try:
            os.getcwd()
        except OSError:  # it has been removed, or may not be read
            return "the working directory"
    return str(error.filename or "")


@contextlib.contextmanager
def _watched_output() -> Iterator[_Output | None]:
    """Put a stream that remembers its error in place of standard output, before the same buffer."""
    usual = sys.stdout
    if not isinstance(usual, io.TextIOWrapper):
        yield None
        return
    with contextlib.suppress(OSError):
        usual.flush()
    # What is written goes on to the buffer at once, so that nothing is lost where somebody flushes only that.
    newline = None if os.linesep != "\n" else "\n"
    output = _Output(
        usual.buffer, usual.encoding, usual.errors, newline, line_buffering=usual.line_buffering, write_through=True
    )
    sys.stdout = output
    try:
        yield output
    finally:
        if output.error is not None:
            _drop(output)
        sys.stdout = usual
        with contextlib.suppress(OSError, ValueError):
            output.detach()  # it would close the buffer


def _drop(output: _Output) -> None:
    """Have nothing more written to a stream, so that Python does not fail at it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        target = os.open(os.devnull, os.O_WRONLY)
        os.dup2(target, output.fileno())
        os.close(target)
