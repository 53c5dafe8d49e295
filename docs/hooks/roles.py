"""Cross-references of docstrings as code, on the pages of the API."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Roles"]


class Roles(griffe.Extension):
    """Shows ``:class:`Name``` as ``Name``, in a fixed-width font, as the pages of components do."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":\w+:`[~.]*([^`]+)`", r"`\1`", obj.docstring.value)
