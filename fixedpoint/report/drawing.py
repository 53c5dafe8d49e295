"""Chooses what of a run is drawn, and keeps what cannot be drawn from taking the report with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fixedpoint.execution.plain import one_line, said
from fixedpoint.report.reading import Group, RunData

__all__ = ["Attempts", "drawn_groups"]

T = TypeVar("T")

# Groups and solvers that are drawn. The tables have all of them.
_MOST_GROUPS, _MOST_SOLVERS = 12, 40


@dataclass
class Attempts:
    """Makes parts of a report one by one.

    Attributes
    ----------
    notices
        A sentence for every part that is left out.
    """

    notices: list[str] = field(default_factory=list)

    def make(self, what: str, part: Callable[[], T]) -> T | None:
        """Return a part; None, with a notice, if making it raises anything.

        Parameters
        ----------
        what
            The part in words, e.g. the name of its file.
        part
            Makes it.
        """
        try:
            return part()
        except Exception as error:  # matplotlib raises errors of any type for values that it cannot draw
            sentence = f"{what} is left out: {type(error).__name__}: {one_line(said(error), 300)}"
            if sentence not in self.notices:
                self.notices.append(sentence)
            return None


def drawn_groups(run: RunData, attempts: Attempts) -> list[Group]:
    """Return the groups that are drawn, each with the solvers that are; a notice says what is left to the tables."""
    groups = run.groups
    if len(groups) > _MOST_GROUPS:
        attempts.notices.append(f"drawn are the first {_MOST_GROUPS} of {len(groups)} groups; the tables have all")
    shown = set(run.solvers[:_MOST_SOLVERS])
    if len(run.solvers) > _MOST_SOLVERS:
        attempts.notices.append(
            f"drawn are the first {_MOST_SOLVERS} of {len(run.solvers)} solvers; the tables have all"
        )
    chosen = [
        replace(group, entries=tuple(entry for entry in group.entries if entry.cell.solver in shown))
        for group in groups[:_MOST_GROUPS]
    ]
    return [group for group in chosen if group.entries]
