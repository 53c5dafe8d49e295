"""Tables of counts, and the verdict on the default solver, from the cells of all maps, starts and solvers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from map_runs.counting import MOST, TOLERANCES, Cell

__all__ = [
    "AGAINST",
    "LEGEND",
    "Limit",
    "Row",
    "failures",
    "limits",
    "means",
    "overview",
    "profile",
    "ratios",
    "summary",
    "table",
]

Row = Mapping[str, Sequence[Cell]]
"""The cells of one map and start: for every solver one per tolerance."""
Rows = Mapping[tuple[str, str], Row]

AGAINST = ("picard", "anderson", "broyden", "squarem")
"""The solvers of this library that ``auto`` is held against."""
MEAN, LARGEST, PEERS = 1.1, 2.0, 1.0
"""Largest geometric mean and largest single ratio to the best of these, and largest mean ratio to the best peer."""

_CODES = {
    "spent": "e",
    "gave up": "g",
    "raised": "r",
    "max_rounds": "m",
    "stalled": "s",
    "diverged": "d",
    "nonfinite": "n",
    "false claim": "F",
}
LEGEND = (
    f"Cells: evaluations from the reference / far / random start, or what happened: e {MOST} evaluations spent, g gave "
    "up, r raised, m limit of rounds, s stalled, d diverged, n not finite, F claimed convergence falsely; ? not run."
)


class Limit(NamedTuple):
    """One limit of acceptance: what it says, the figure found, and whether it holds."""

    text: str
    figure: str
    holds: bool


def table(rows: Rows, solvers: Sequence[str], index: int) -> Iterator[str]:
    """A Markdown table of the counts to one tolerance: a line for every map, with its three starts in one cell."""
    yield f"Relative residual {TOLERANCES[index]:g}"
    yield ""
    yield "| map | " + " | ".join(solvers) + " |"
    yield "|:--|" + "--:|" * len(solvers)
    names = dict.fromkeys(name for name, _ in rows)
    for name in names:
        lines = [row for (other, _), row in rows.items() if other == name]
        cells = ["/".join(_short(row, solver, index) for row in lines) for solver in solvers]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _short(row: Row, solver: str, index: int) -> str:
    if solver not in row:
        return "?"
    cell = row[solver][index]
    if cell.evaluations is not None:
        return str(cell.evaluations)
    return next(code for kind, code in _CODES.items() if cell.outcome.startswith(kind))


def failures(rows: Rows, index: int, solver: str = "auto") -> Iterator[tuple[tuple[str, str], Cell, str, int]]:
    """Where a solver fails and another one does not: the key, its cell, the best other one, and that one's count."""
    for key, row in rows.items():
        if solver not in row or row[solver][index].evaluations is not None:
            continue
        found = _best(row, [name for name in row if name != solver], index)
        if found is not None:
            yield key, row[solver][index], *found


def ratios(rows: Rows, others: Iterable[str], index: int) -> dict[tuple[str, str], tuple[float, str, int, int]]:
    """Where ``auto`` and one of the others succeed: the ratio of counts, the best other one, its count and auto's."""
    names, found = list(others), {}
    for key, row in rows.items():
        best = _best(row, names, index)
        if best is None or "auto" not in row or (ours := row["auto"][index].evaluations) is None:
            continue
        found[key] = (ours / best[1], *best, ours)
    return found


def _best(row: Row, names: Iterable[str], index: int) -> tuple[str, int] | None:
    counts = [(row[name][index].evaluations, name) for name in names if name in row]
    solved = [(count, name) for count, name in counts if count is not None]
    if not solved:
        return None
    count, name = min(solved, key=lambda pair: pair[0])
    return name, count


def means(rows: Rows, others: Iterable[str], index: int) -> dict[str, tuple[float, int]]:
    """For every other solver: the geometric mean of ``auto``'s count over its own where both succeed, and on how many.

    Where the other one fails, it is not counted, which favours it.
    """
    found = {}
    for other in others:
        values = [value for value, *_ in ratios(rows, [other], index).values()]
        if values:
            found[other] = (_mean(values), len(values))
    return found


def profile(rows: Rows, solvers: Sequence[str], index: int) -> dict[str, list[float]]:
    """For every solver its counts as multiples of the fewest of these solvers, ascending; infinite where it failed."""
    found: dict[str, list[float]] = {solver: [] for solver in solvers}
    for row in rows.values():
        best = _best(row, solvers, index)
        if best is not None:
            for solver in solvers:
                count = row[solver][index].evaluations if solver in row else None
                found[solver].append(math.inf if count is None else count / best[1])
    return {solver: sorted(values) for solver, values in found.items()}


def overview(rows: Rows, solvers: Sequence[str]) -> Iterator[str]:
    """A Markdown table: how many solves a solver makes, and what ``auto`` takes of its count, for every tolerance."""
    told = " | ".join(f"solved to {tolerance:g} | auto / it" for tolerance in TOLERANCES)
    yield f"| solver | {told} |"
    yield "|:--|" + "--:|" * (2 * len(TOLERANCES))
    solved = {
        solver: [sum(solver in r and r[solver][k].evaluations is not None for r in rows.values()) for k in (0, 1)]
        for solver in solvers
    }
    for solver in sorted(solvers, key=lambda name: -sum(solved[name])):
        cells = []
        for index in range(len(TOLERANCES)):
            found = means(rows, [solver], index).get(solver)
            cells += [str(solved[solver][index]), "-" if found is None or solver == "auto" else f"{found[0]:.2f}"]
        yield f"| {solver} | " + " | ".join(cells) + " |"


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def limits(rows: Rows, peers: Sequence[str]) -> Iterator[Limit]:
    """The limits of acceptance, for every tolerance."""
    for index, tolerance in enumerate(TOLERANCES):
        lost = list(failures(rows, index))
        yield Limit(f"{tolerance:g}: auto fails on none that another solves", f"{len(lost)} of {len(rows)}", not lost)
        values = [value for value, *_ in ratios(rows, AGAINST, index).values()]
        mean, largest = _mean(values), max(values, default=math.nan)
        best = f"the best of {', '.join(AGAINST)}"
        yield Limit(f"{tolerance:g}: auto / {best}, mean at most {MEAN:g}", f"{mean:.3f}", mean <= MEAN)
        yield Limit(f"{tolerance:g}: auto / {best}, at most {LARGEST:g}", f"{largest:.2f}", largest <= LARGEST)
        each = means(rows, peers, index)
        worst = max(each, key=lambda name: each[name][0], default="none")
        value = each[worst][0] if each else math.nan
        yield Limit(f"{tolerance:g}: auto / any peer, mean at most {PEERS:g}", f"{value:.3f} ({worst})", value <= PEERS)
        mean = _mean(value for value, *_ in ratios(rows, peers, index).values())
        text = f"{tolerance:g}: auto / whichever peer is best on a map, mean at most {PEERS:g}"
        yield Limit(text, f"{mean:.3f}", mean <= PEERS)


def summary(rows: Rows, peers: Sequence[str]) -> Iterator[str]:
    """In sentences: failures and high ratios of ``auto``, how many every solver solves, and the limits."""
    for index, tolerance in enumerate(TOLERANCES):
        yield f"\nTo {tolerance:g}, auto fails where another solver does not:"
        for (name, start), cell, best, count in failures(rows, index):
            yield f"  {name}, {start}: {cell.outcome}; {best} {count}"
        for title, others in (("the best of " + ", ".join(AGAINST), AGAINST), ("the best peer", peers)):
            found = ratios(rows, others, index)
            over = {key: entry for key, entry in found.items() if entry[0] > LARGEST}
            yield f"To {tolerance:g}, auto / {title}: mean {_mean(v[0] for v in found.values()):.3f} of {len(found)}"
            for (name, start), (value, best, count, ours) in sorted(over.items(), key=lambda item: -item[1][0]):
                yield f"  {name}, {start}: {value:.2f} (auto {ours}, {best} {count})"
        told = (
            f"{name} {mean:.2f} of {count}" for name, (mean, count) in means(rows, (*AGAINST, *peers), index).items()
        )
        yield f"To {tolerance:g}, auto / another, mean where both succeed: " + ", ".join(told)
        solvers = dict.fromkeys(solver for row in rows.values() for solver in row)
        solved = {s: sum(s in r and r[s][index].evaluations is not None for r in rows.values()) for s in solvers}
        told = (f"{name} {count}" for name, count in sorted(solved.items(), key=lambda item: -item[1]))
        yield f"To {tolerance:g}, solved of {len(rows)}: " + ", ".join(told)
    yield "\nLimits:"
    for limit in limits(rows, peers):
        yield f"  {'holds' if limit.holds else 'FAILS'}: {limit.text}: {limit.figure}"
