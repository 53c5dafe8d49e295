"""The table of checks, in the order they run."""

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
    """One check that every solver, or every gradient estimator, must pass.

    Attributes
    ----------
    name
        Its name in reports and in ``only``.
    body
        Takes a bench and returns a description of what was measured, or raises.
    """

    name: str
    body: Callable[[B], str]

    @property
    def explanation(self) -> str:
        """What the check demands, and why: its docstring in one line."""
        return " ".join((inspect.getdoc(self.body) or "").split())


CHECKS: dict[str, Check[Bench]] = {}
"""All checks of solvers by name, in the order they run."""


def check(name: str) -> Callable[[Body], Body]:
    """Add a function to the table; its docstring is the explanation that users see."""

    def enter(body: Body) -> Body:
        CHECKS[name] = Check(name, body)
        return body

    return enter
