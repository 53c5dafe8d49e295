"""``unheard``: what a pipeline logs of its arguments, it logs in the first replay; the others are kept from the log."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

__all__ = ["unheard"]


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Keep from the handlers of diffusers what this thread logs."""
    thread, handlers = threading.get_ident(), list(logging.getLogger("diffusers").handlers)

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    for handler in handlers:
        handler.addFilter(is_of_others)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_of_others)
