"""Conclusions from a table of rounds and evaluations: this library's methods against the others, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cells import Cell
from chain_methods import KINDS

__all__ = ["verdict"]

Column = Mapping[str, Cell | None]

AUTHORS = "deq-ddim"
SHARE_OF_ROUNDS = 0.6
SHARE_OF_WORK = 0.4
SLOWER = 1.3
LONG = 250


class Finding(NamedTuple):
    """The finding on a claim about one chain: whether it holds, and the figures."""

    holds: bool
    figures: str


def verdict(columns: Mapping[int, Column]) -> Iterator[str]:
    """Sentences on every chain, by its steps; then, for each claim, whether it holds for all of them."""
    rounds = {length: fewest_rounds(column) for length, column in columns.items()}
    work = {length: least_work(length, column) for length, column in columns.items() if length >= LONG}
    claims = {
        f"fewest rounds to 1e-3, at most {SHARE_OF_ROUNDS:g} of the authors'": rounds,
        f"at most {SHARE_OF_WORK:.0%} of the work of all steps in the fewest rounds, in {SLOWER:g} times as many": work,
    }
    for claim, findings in claims.items():
        for length, finding in findings.items():
            yield f"N = {length}: {finding.figures}: {_answer(finding.holds)}"
        if findings:
            yield f"-> {claim}: {_answer(all(finding.holds for finding in findings.values()))}"


def fewest_rounds(column: Column) -> Finding:
    """Whether an accelerated method takes the fewest rounds to the last tolerance, and the numbers."""
    ours, others = (_rounds(column, kinds) for kinds in (("accelerated",), ("published", "plain")))
    authors = others.get(AUTHORS)
    said = f"{_fewest(ours)} rounds of ours, {_fewest(others)} of others, {authors or 'not reached'} of the authors'"
    if not ours or AUTHORS not in column:
        return Finding(False, f"{said} (not all methods were run)")
    least = min(ours.values())
    share = 0.0 if authors is None else least / authors
    return Finding(least <= min(others.values(), default=least) and share <= SHARE_OF_ROUNDS, f"{said} ({share:.2f})")


def least_work(length: int, column: Column) -> Finding:
    """Whether a method that saves work stops by itself within the tolerance, not much later, at a share of the work."""
    ours = _rounds(column, ("accelerated",))
    saving = {name: cell for name, cell in _close(column, ("saving",)).items() if cell.end is not None}
    if not ours or not saving:
        return Finding(False, "not all methods were run, or none came near enough")
    full = min(ours.values())
    ends = {name: cell.end for name, cell in saving.items() if cell.end and cell.end.rounds <= SLOWER * full}
    if not ends:
        return Finding(False, f"none ends within {SLOWER:g} times {full} rounds")
    name, end = min(ends.items(), key=lambda item: item[1].evaluations)
    share = end.evaluations / (full * length)
    figures = (
        f"{name} ends after {end.rounds} rounds and {end.evaluations / length:.3g} N evaluations with an error of "
        f"{end.error:.1e}, {share:.0%} of {full} N"
    )
    return Finding(share <= SHARE_OF_WORK, figures)


def _close(column: Column, kinds: tuple[str, ...]) -> dict[str, Cell]:
    """The cells of these kinds that reached the last tolerance."""
    names = {name for kind in kinds for name in KINDS[kind]}
    return {name: cell for name, cell in column.items() if name in names and cell is not None and cell.close}


def _rounds(column: Column, kinds: tuple[str, ...]) -> dict[str, int]:
    return {name: cell.rounds[-1] or 0 for name, cell in _close(column, kinds).items()}


def _fewest(rounds: Mapping[str, int]) -> str:
    if not rounds:
        return "no"
    least = min(rounds.values())
    return f"{least} ({', '.join(name for name, count in rounds.items() if count == least)})"


def _answer(holds: bool) -> str:
    return "yes" if holds else "no"
