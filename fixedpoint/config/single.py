"""Resolves one component with its options as typed on a command line: ``anderson memory=3``."""

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
    """Return the name and every option of a component, for ``registry.create``.

    Parameters
    ----------
    kind, name
        The component.
    overrides
        ``key.path=value`` pairs, e.g. ``memory=3``.

    Raises
    ------
    ConfigError
        If there are mistakes. The message has one line for each, without positions.
    """
    document = Document({"name": name}, file="")
    apply_overrides(document, overrides)
    resolver = Resolver(document)
    choice = resolver.component(kind, document.data, ())
    if choice is None:
        raise ConfigError(resolver.mistakes)
    return choice.config
