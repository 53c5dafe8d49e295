"""Interrupts that are not lost: Ctrl-C raises at once, and again between cells if something swallowed it.

Python raises ``KeyboardInterrupt`` wherever it happens to be, and code that catches everything (some imports do) makes
it disappear. A run remembers that it was asked to stop. In the program a second Ctrl-C ends the process there and then:
records are written whole or not at all, so nothing that is done can be lost by it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["forget_caught", "remembered"]


def forget_caught() -> None:
    """Make the exit status the program's own again, after an interrupt was caught.

    An interrupt that passes through ``exec`` of a string (a dataclass in the making, somewhere in an import) is noted
    by CPython, which then ends the process by the signal, status aside, even though it was caught. The next ``exec``
    of a string clears the note.
    """
    exec("")


@contextmanager
def remembered(second_exits: bool = False) -> Iterator[Callable[[], None]]:
    """While this is open, an interrupt is remembered; the function it gives raises it if there was one.

    With ``second_exits`` a second interrupt ends the process with status 130: for programs, never for a notebook.

    Outside the main thread, where signals cannot be handled, and where interrupts are ignored or handled by somebody
    else, nothing is changed.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and second_exits:
            os.write(2, b"\nstopped at once\n")  # print could wait for a lock that will not come
            os._exit(128 + number)
        asked = True
        signal.default_int_handler(number, frame)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
