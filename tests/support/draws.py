"""How many examples hypothesis draws: few for the quick tests, and many where slow tests run, too."""

from __future__ import annotations

import hypothesis

__all__ = ["Length", "examples"]


class Length:
    """Set before tests are collected: whether slow ones are left out."""

    short = False


def examples(few: int, many: int) -> hypothesis.settings:
    """Settings of a property, of which fewer examples find most faults."""
    return hypothesis.settings(max_examples=few if Length.short else many)
