"""Collects what a group of cells has to draw in addition to curves: step errors, samples, and samples as they form."""

from __future__ import annotations

from dataclasses import dataclass

from fixedpoint.report.forming import SampleSequence, sample_sequences_of
from fixedpoint.report.gallery import Strip, strips_of
from fixedpoint.report.reading import Group
from fixedpoint.report.steps import Steps, steps_of

__all__ = ["Pictures", "pictures_of"]


@dataclass(frozen=True)
class Pictures:
    """What there is to draw of one group. A list is empty if the records have nothing of its kind.

    Attributes
    ----------
    title
        Title of the group.
    tolerance
        Relative tolerance; 0 if unknown.
    steps, strips, films
        Step errors, samples, and samples as they form, of each solver that has them.
    """

    title: str
    tolerance: float
    steps: list[Steps]
    strips: list[Strip]
    films: list[SampleSequence]


def pictures_of(group: Group) -> Pictures:
    """Return what the records of a group have to draw."""
    return Pictures(group.title, group.tolerance, steps_of(group), strips_of(group), sample_sequences_of(group))
