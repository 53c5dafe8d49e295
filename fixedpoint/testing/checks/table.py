"""The ordered table of checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from fixedpoint.testing.bench import Bench

__all__ = ["CHECKS", "Check", "check"]

Body = Callable[[Bench], str]


@dataclass(frozen=True)
class Check:
    """One thing that every solver must do.

    Attributes
    ----------
    name
        What it is called in reports and in ``only``.
    body
        Takes a bench; returns what was seen, or raises.
    """

    name: str
    body: Body

    @property
    def explanation(self) -> str:
        """What is demanded, and why."""
        return " ".join((inspect.getdoc(self.body) or "").split())


CHECKS: dict[str, Check] = {}
"""All checks by name, in the order they are run."""


def check(name: str) -> Callable[[Body], Body]:
    """Enter a function in the table; its docstring is the explanation people see."""

    def enter(body: Body) -> Body:
        CHECKS[name] = Check(name, body)
        return body

    return enter
