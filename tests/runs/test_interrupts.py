"""An interrupt that something swallowed is raised again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from fixedpoint.runs.interrupts import remembered


@pytest.fixture(autouse=True)
def python_handles_interrupts() -> Iterator[None]:
    """As in any program started in the foreground, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_is_raised_at_once_and_remembered() -> None:
    with remembered() as check:
        check()
        with contextlib.suppress(KeyboardInterrupt):  # what careless code does
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the interrupt was not raised at once")
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_somebody_elses_handler_is_left_alone() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda *arguments: seen.append(arguments[0]))
    try:
        with remembered() as check:
            signal.raise_signal(signal.SIGINT)
            check()
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_handle_no_signals() -> None:
    ended = []

    def run() -> None:
        with remembered() as check:
            check()
        ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert ended == [True]


TWICE = """
import signal
from fixedpoint.runs.interrupts import remembered
with remembered(second_exits=True):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass  # clean-up that takes its time
    signal.raise_signal(signal.SIGINT)
print("still here")
"""


def test_a_second_interrupt_ends_the_process_there_and_then() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nstopped at once\n")
