"""Where a model is: a folder, with ``~`` and variables of the environment, or a model in the cache of Hugging Face."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["FolderError", "located"]

# The form of the names on the hub, with a revision if wanted: owner/name@revision.
_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+))?")


class FolderError(ValueError):
    """Raised for a folder that cannot be used as a model; the message says what was found and what is required."""


def located(text: str | Path, hub: bool = True) -> Path:
    """The folder that a text names; it need not exist. Nothing is downloaded.

    With ``hub``, a text of the form ``owner/name`` that is no folder is looked for in the cache of Hugging Face, as is
    ``owner/name@revision``.

    Raises
    ------
    FolderError
        If a variable of the environment is not set, or if the cache does not have the model. The message says how to
        get it.
    """
    expanded = os.path.expanduser(os.path.expandvars(str(text)))
    unset = re.search(r"\$\{?(\w+)\}?", expanded)
    path = Path(expanded)
    if unset and not path.exists():
        raise FolderError(f"{text} names the variable {unset[1]} of the environment, which is not set")
    named = _HUB.fullmatch(str(text)) if hub else None
    return path if path.exists() or named is None else _cached(named["name"], named["revision"])


def _cached(name: str, revision: str | None) -> Path:
    """The folder of a model in the cache of Hugging Face."""
    command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    lacking = f"there is no folder {name}, and no model of this name"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        raise FolderError(f"there is no folder {name}; a model is a folder as save_pretrained writes it") from None
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        raise FolderError(f"{lacking} in the cache of Hugging Face; nothing is downloaded here: {command}") from None
