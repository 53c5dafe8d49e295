"""Imports what draws, whatever the environment says of windows."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator

from fixedpoint.execution.plain import one_line, said

__all__ = ["lacking"]

_NEEDED = ("matplotlib", "jinja2")
_BACKEND = "MPLBACKEND"


def lacking() -> str:
    """Import what plots and the page require.

    Returns
    -------
    str
        What is missing or cannot be imported, in a sentence; empty if all is there.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"no plots and no page: they need {' and '.join(missing)}; pip install 'fixedpoint-solvers[report]'"
    for name in _NEEDED:
        try:
            with _without_backend():
                importlib.import_module(name)
        except Exception as error:  # what an installation that is broken, or its configuration, raises is not known
            return (
                f"no plots and no page: {name} cannot be imported: {type(error).__name__}: {one_line(said(error), 300)}"
            )
    return ""


@contextlib.contextmanager
def _without_backend() -> Iterator[None]:
    """Within a ``with`` block, hide the name of a backend, of which importing matplotlib would raise if there is none.

    Pictures are drawn in memory, and need no backend. One that there is holds for what else is drawn in the process.
    """
    name = os.environ.get(_BACKEND)
    if not name or "matplotlib" in sys.modules:
        yield
        return
    del os.environ[_BACKEND]
    try:
        yield
    finally:
        os.environ[_BACKEND] = name
        matplotlib = sys.modules.get("matplotlib")
        if matplotlib is not None:
            with contextlib.suppress(ValueError):
                matplotlib.rcParams["backend"] = name
