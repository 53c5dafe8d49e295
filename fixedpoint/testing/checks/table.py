"""The ordered table of checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from fixedpoint.testing.bench import Bench

__all__ = ["CHECKS", "Check", "check"]

B = TypeVar("B")
Body = Callable[[Bench], str]


@dataclass(frozen=True)
class Check(Generic[B]):
    """One thing that everything of a kind must do: every solver, every gradient estimator.

    Attributes
    ----------
    name
        What it is called in reports and in ``only``.
    body
        Takes a bench; returns what was seen, or raises.
    """

    name: str
    body: Callable[[B], str]

    @property
    def explanation(self) -> str:
        """What is demanded, and why."""
        return " ".join((inspect.getdoc(self.body) or "").split())


CHECKS: dict[str, Check[Bench]] = {}
"""All checks by name, in the order they are run."""


def check(name: str) -> Callable[[Body], Body]:
    """Enter a function in the table; its docstring is the explanation people see."""

    def enter(body: Body) -> Body:
        CHECKS[name] = Check(name, body)
        return body

    return enter
