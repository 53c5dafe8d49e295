"""How many CPU seconds every test takes, those of its subprocesses and of all workers with them.

``python -m pytest -p tests.support.cpu_seconds -n 2 -m "not slow and not gpu"`` ends with the 30 dearest tests, the
files that take most, and the total. The seconds of a process that outlives the test it was started in are counted in
the test in which it ends: a session's fixtures (``warm.py``, a browser) count in the last one of a worker.

The suite is kept below 25 minutes on two cores. To make it quicker, first look for the same thing done twice, then for
sizes that find a fault no better than smaller ones, and last mark the dearest parameters ``slow``, but one of every
kind.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

__all__: list[str] = []

_SPENT: dict[str, float] = {}
_TOTALS: list[float] = []
_BEFORE = {"": 0.0}


def _seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _BEFORE[item.nodeid] = _seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    report = yield
    if report.when == "teardown":
        report.user_properties.append(("cpu_seconds", _seconds() - _BEFORE.pop(item.nodeid)))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        _SPENT[report.nodeid] = dict(report.user_properties).get("cpu_seconds", 0.0)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cpu_seconds"] = _seconds()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    _TOTALS.append(getattr(node, "workeroutput", {}).get("cpu_seconds", 0.0))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    own = os.times()
    total = sum(_TOTALS) + own.user + own.system if _TOTALS else _seconds()
    files: Counter[str] = Counter()
    for name, seconds in _SPENT.items():
        files[name.partition("::")[0]] += seconds
    terminalreporter.section(f"{total:.1f} CPU seconds, {sum(files.values()):.1f} of them in tests")
    for spent in (files, Counter(_SPENT)):
        for name, seconds in spent.most_common(30):
            terminalreporter.write_line(f"{seconds:8.2f} {name}")
        terminalreporter.write_line("")
