"""Code of others, such as plugins and tasks: what it raises must neither end the program nor pass unnoticed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from types import TracebackType

__all__ = ["ExitRequestedError", "brief", "foreign", "guarded"]


class ExitRequestedError(RuntimeError):
    """Code of others raised what would have ended the program, such as ``SystemExit``; the message says what."""


class foreign(AbstractContextManager[None]):  # noqa: N801 -- a context manager, written like a function
    """Within a ``with`` block, what is neither an ``Exception`` nor an interrupt becomes one: code of others runs here.

    ``except Exception`` around the block then catches everything that the code can raise, but for
    ``KeyboardInterrupt``. Without it, a plugin that calls ``sys.exit(0)`` makes a program succeed that did nothing.

    Raises
    ------
    ExitRequestedError
        In place of ``SystemExit``, ``GeneratorExit`` and every other ``BaseException``.
    """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Replace the exception where it is none that ``except Exception`` catches."""
        if error is not None and not isinstance(error, (Exception, KeyboardInterrupt)):
            raise ExitRequestedError(f"{brief(error)}, which would have ended the program") from error


@contextmanager
def guarded() -> Iterator[None]:
    """Within a ``with`` block, run code of plugins: it prints to stderr, and raises nothing but an ``Exception``.

    What a plugin prints when it is imported would otherwise stand in the JSON that a program prints.
    """
    with foreign(), redirect_stdout(sys.stderr):
        yield


def brief(error: BaseException) -> str:
    """Return the type and message of an exception in one line that can be printed and encoded."""
    name = type(error).__name__
    try:
        with foreign():
            said = " ".join(str(error).split())
    except Exception:
        return f"{name}, whose message cannot be printed"
    text = said.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(error, ExitRequestedError):  # its message names the class that was raised
        return text
    return f"{name}: {text}" if text else name
