"""What the cells of a task give to draw, beside their curves: steps, samples, samples as they form."""

from __future__ import annotations

from dataclasses import dataclass

from fixedpoint.report.forming import Film, films_of
from fixedpoint.report.gallery import Strip, strips_of
from fixedpoint.report.reading import Group
from fixedpoint.report.steps import Steps, steps_of

__all__ = ["Pictures", "pictures_of"]


@dataclass(frozen=True)
class Pictures:
    """Of one group; empty lists where the records have none."""

    title: str
    tolerance: float
    steps: list[Steps]
    strips: list[Strip]
    films: list[Film]


def pictures_of(group: Group) -> Pictures:
    """What the records of the group hold."""
    return Pictures(group.title, group.tolerance, steps_of(group), strips_of(group), films_of(group))
