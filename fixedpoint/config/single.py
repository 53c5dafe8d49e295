"""One component and its options as typed on a command line: ``anderson memory=3``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fixedpoint.config.document import Document
from fixedpoint.config.errors import ConfigError
from fixedpoint.config.overrides import apply_overrides
from fixedpoint.config.resolve import Resolver
from fixedpoint.registry import Kind

__all__ = ["component_config"]


def component_config(kind: Kind, name: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The name and every option of a component, for ``registry.create``.

    Raises
    ------
    ConfigError
        With one line for every mistake, without positions.
    """
    document = Document({"name": name}, file="")
    apply_overrides(document, overrides)
    resolver = Resolver(document)
    choice = resolver.component(kind, document.data, ())
    if choice is None:
        raise ConfigError(resolver.mistakes)
    return choice.config
