"""Searches existing records for the distribution of a component that is no longer installed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from fixedpoint.config.bounded import read_bytes
from fixedpoint.config.folder import MOST_JSON, Folder
from fixedpoint.registry import Kind
from fixedpoint.registry.owners import version_of

__all__ = ["gone", "remembered"]

# At most this many records are read, so that many large runs do not delay the message on an unknown name.
_MOST_RECORDS = 2000


def gone(what: str, distribution: str, version: str) -> str:
    """Return in words that the distribution of a component is gone: ``the solver x of the distribution mine 1.0, ...``.

    Parameters
    ----------
    what
        Kind and name of the component.
    distribution, version
        The distribution that brought it. Without a version it was a plugin registered in a process.
    """
    installed = version_of(distribution)
    if not version:
        return f"the {what} of {distribution}, which was no distribution"
    state = f"in whose place {installed} is installed" if installed else "which is not installed"
    if installed == version:
        state = "which is installed but no longer brings it"
    return f"the {what} of the distribution {distribution} {version}, {state}"


def remembered(kind: Kind, name: str, folders: Iterable[Path]) -> str:
    """Return a sentence on who brought a missing component, if a record was made with it; else an empty string.

    Parameters
    ----------
    kind, name
        The component.
    folders
        Run folders whose records are searched first. The run folders next to them follow.
    """
    what = f"{kind} {name}"
    for path in islice(_records(folders), _MOST_RECORDS):
        # A damaged record, or one of another format.
        with suppress(OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
            for distribution, maker in json.loads(read_bytes(path, MOST_JSON)).get("made_by", {}).items():
                if what in maker["brings"]:
                    by = gone(what, distribution, maker["version"])
                    return f"{path.parent.parent} has records made by {by}"
    return ""


def _records(folders: Iterable[Path]) -> Iterator[Path]:
    """The records in the folders, then those in the run folders next to them."""
    own = list(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))
    here = Path.cwd()
    for folder in (*own, *(other for each in own for other in _beside(each))):
        shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
        with suppress(OSError):
            yield from sorted(Folder(shown).record("x").parent.glob("*.json"))


def _beside(folder: Path) -> list[Path]:
    """The other run folders in the same parent folder."""
    with suppress(OSError):
        return sorted(other.parent for other in folder.parent.glob("*/run.json") if other.parent != folder)
    return []
