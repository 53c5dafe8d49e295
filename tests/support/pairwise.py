"""Pairwise covering designs: few combinations of options in which any two choices occur together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

__all__ = ["pairs_of", "pairwise_design"]

Row = tuple[str, ...]
Allowed = Callable[[Row], bool]


def pairwise_design(factors: Sequence[Sequence[str]], allowed: Allowed) -> list[Row]:
    """Return rows with one choice of every factor each, chosen greedily: the next row has the most missing pairs.

    Pairs that occur in no allowed row are left out.
    """
    rows = [row for row in product(*factors) if allowed(row)]
    missing = {pair for row in rows for pair in pairs_of(row)}
    design = []
    while missing:
        best = max(rows, key=lambda row: len(missing.intersection(pairs_of(row))))
        design.append(best)
        missing.difference_update(pairs_of(best))
    return design


def pairs_of(row: Row) -> Iterator[tuple[tuple[int, str], tuple[int, str]]]:
    """Return all pairs of choices of a row, each choice with the number of its factor."""
    return combinations(enumerate(row), 2)
