"""Remembered: who brought a component that is not there any more, as far as records tell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from fixedpoint.config.folder import Folder
from fixedpoint.registry import Kind
from fixedpoint.registry.owners import version_of

__all__ = ["gone", "remembered"]

# Looked through when a name is unknown, so that many large runs do not hold up the sentence.
_MOST_RECORDS = 2000


def gone(what: str, distribution: str, version: str) -> str:
    """A component with who brought it, and that this is gone: ``the solver mine of the distribution mine 1.0, ...``."""
    installed = version_of(distribution)
    if not version:  # a plugin of a process
        return f"the {what} of {distribution}, which was no distribution"
    state = f"in whose place {installed} is installed" if installed else "which is not installed"
    return f"the {what} of the distribution {distribution} {version}, {state}"


def remembered(kind: Kind, name: str, folders: Iterable[Path]) -> str:
    """A sentence on a component that is not there, if a record in one of the folders was made with it; else empty."""
    what = f"{kind} {name}"
    for path in islice(_records(folders), _MOST_RECORDS):
        with suppress(OSError, ValueError, AttributeError, TypeError):  # damaged, or of another form
            for distribution, maker in json.loads(path.read_bytes()).get("made_by", {}).items():
                if what in maker["brings"]:
                    by = gone(what, distribution, maker["version"])
                    return f"{path.parent.parent} has records made by {by}"
    return ""


def _records(folders: Iterable[Path]) -> Iterator[Path]:
    """The records of folders, then those of the folders beside them."""
    own = list(dict.fromkeys(folder.resolve() for folder in folders))
    here = Path.cwd()
    for folder in (*own, *(other for each in own for other in _beside(each))):
        shown = folder.relative_to(here) if folder.is_relative_to(here) else folder
        with suppress(OSError):
            yield from sorted(Folder(shown).record("x").parent.glob("*.json"))


def _beside(folder: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(other.parent for other in folder.parent.glob("*/run.json") if other.parent != folder)
    return []
