"""Handles Ctrl-C so that no interrupt is lost: it raises at once, and again after the cell if it was swallowed.

Python raises ``KeyboardInterrupt`` in whatever code is running, and code that catches every exception, as some imports
do, can swallow it. A run therefore remembers that it was interrupted. In the program, a second Ctrl-C ends the process
immediately. This loses no finished cell, because records are written atomically.
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
    """Restore the program's own exit status after an interrupt was caught.

    CPython sets a flag when an interrupt passes through ``exec`` of a string, which happens where an import creates a
    dataclass. It then ends the process by the signal instead of with the exit status, even though the interrupt was
    caught. The next ``exec`` of a string clears the flag.
    """
    exec("")


@contextmanager
def remembered(second_exits: bool = False) -> Iterator[Callable[[], None]]:
    """Remember interrupts within a ``with`` block. The function it yields raises KeyboardInterrupt if there was one.

    Outside the main thread, where Python cannot handle signals, and where interrupts are ignored or have a handler
    other than Python's own, nothing is changed.

    Parameters
    ----------
    second_exits
        Whether a second interrupt ends the process with status 130. For programs only: it would kill a notebook.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and second_exits:
            os.write(2, b"\nstopped at once\n")  # print could deadlock on a lock that this thread holds
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
