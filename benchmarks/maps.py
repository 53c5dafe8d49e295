"""Counts evaluations of all solvers on the maps of ``map_suite``, three starts each, beside those of other libraries.

    python benchmarks/maps.py                            every map, start and solver: tables and a summary (hours)
    python benchmarks/maps.py --only em-iris,blp         some maps
    python benchmarks/maps.py --solver auto,picard       some solvers; "ours" and "peers" stand for all of a kind
    python benchmarks/maps.py --json counts.json         saves the counts, one map after another, and goes on with them
    python benchmarks/maps.py --load counts.json         prints tables and summary of saved counts, without a run
                                                         (several files, separated by commas, are put together)
    python benchmarks/maps.py --load counts.json --plot  draws the profile of docs/how-to/which-solver.md
    python benchmarks/maps.py --check                    exits with 1 where a limit of acceptance fails

A solve is to a relative residual of 1e-6 or 1e-10, within 2000 evaluations of ``f``; ``map_runs/counting.py`` says what
counts and who judges. Solvers of this library stop by themselves, with that tolerance. Those of others are stopped at
the first solution that they come by, which favours them. ``krylov`` is left out, since it is for affine maps only, and
solvers for chains.

Requires torchdeq 0.1, SciPy, scikit-learn and networkx; jaxopt and SUNDIALS are used where they are installed.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import typer
from map_runs.counting import TOLERANCES, Cell, of_ours, of_peer
from map_runs.peers import missing, peers
from map_runs.report import LEGEND, limits, overview, profile, summary, table
from map_suite import STARTS, Map, all_maps
from threadpoolctl import threadpool_limits

OURS: dict[str, Any] = {
    "auto": "auto",
    "picard": "picard",
    "anderson": "anderson",
    "broyden": "broyden",
    "squarem": "squarem",
    "anderson-type1": "anderson-type1",
    "aitken": "aitken",
    "newton-krylov": "newton-krylov",
    "polyalgorithm": "polyalgorithm",
    "picard, half steps": {"name": "picard", "relaxation": 0.5},
}

PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "maps-profile.png"

Rows = dict[tuple[str, str], dict[str, list[Cell]]]


def run(made: Map, start: str, solver: str) -> list[Cell]:
    """The cells of one solver, for every tolerance."""
    if solver in OURS:
        cells: list[Cell] = []
        for tolerance in TOLERANCES:
            # A solver that has failed would fail again; only auto hands a row on at a time that depends on the rule.
            lost = bool(cells) and cells[-1].evaluations is None and solver != "auto"
            cells.append(cells[-1] if lost else of_ours(OURS[solver], made, start, tolerance))
        return cells
    return list(of_peer(peers()[solver], made, start))


def _chosen(text: str, names: list[str], groups: dict[str, list[str]]) -> list[str]:
    if not text:
        return names
    wanted = [part.strip() for part in text.split(",")]
    unknown = [part for part in wanted if part not in names and part not in groups]
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; there are {', '.join([*groups, *names])}")
    return [name for name in names if name in wanted or any(name in groups[part] for part in wanted if part in groups)]


def load(*paths: Path) -> Rows:
    """Saved counts; of a solver in several files, those of the last one."""
    found: Rows = {}
    for path in paths:
        for entry in json.loads(path.read_text()):
            row = found.setdefault((entry["map"], entry["start"]), {})
            row |= {solver: [Cell(*cell) for cell in cells] for solver, cells in entry["cells"].items()}
    return found


def save(path: Path, rows: Rows) -> None:
    """Save counts, as a list of one entry for every map and start."""
    entries = [
        {
            "map": name,
            "start": start,
            "cells": {solver: [[cell.evaluations, cell.outcome] for cell in cells] for solver, cells in row.items()},
        }
        for (name, start), row in rows.items()
    ]
    path.write_text(json.dumps(entries, indent=1) + "\n")


def main(
    only: str = typer.Option("", help="Names of maps, separated by commas; by default all."),
    solver: str = typer.Option("", help="Names of solvers, or ours, or peers; by default all."),
    saved: str = typer.Option("", "--json", help="File to save counts in; what it contains is not run again."),
    loaded: str = typer.Option("", "--load", help="Files of saved counts to print, separated by commas; no run."),
    plot: bool = typer.Option(False, "--plot", help="Draw the performance profile."),
    check: bool = typer.Option(False, "--check", help="Exit with 1 where a limit of acceptance fails."),
) -> None:
    """Run the comparison."""
    torch.set_num_threads(1)
    theirs = list(peers())
    solvers = _chosen(solver, [*OURS, *theirs], {"ours": list(OURS), "peers": theirs})
    names = _chosen(only, [made.name for made in all_maps()], {})
    if loaded:
        rows = {key: row for key, row in load(*map(Path, loaded.split(","))).items() if key[0] in names}
        theirs = list(dict.fromkeys(name for row in rows.values() for name in row if name not in OURS))
        solvers = solvers if solver else [*OURS, *theirs]
    else:
        rows = measured([made for made in all_maps() if made.name in names], solvers, Path(saved) if saved else None)
        if missing():
            print(f"Not installed, and left out: {', '.join(missing())}", file=sys.stderr)
    for index in range(len(TOLERANCES)):
        print(*table(rows, solvers, index), "", LEGEND, "", sep="\n")
    told = [name for name in solvers if any(name in row for row in rows.values())]
    print(*overview(rows, told), sep="\n")
    print(*summary(rows, theirs), sep="\n")
    if plot:
        draw(rows, theirs)
    if check and not all(limit.holds for limit in limits(rows, theirs)):
        raise typer.Exit(1)


def draw(rows: Rows, theirs: list[str]) -> None:
    """Draw which part of all maps and starts a solver solves within a multiple of the fewest evaluations of any."""
    ours = ["auto", "squarem", "anderson", "broyden", "picard"]
    best = sorted(theirs, key=lambda name: -sum(row[name][0].evaluations is not None for row in rows.values()))
    shown = [*ours, *(name for name in best if name.split()[-1] not in ("fixed-point", "m=0"))][: len(ours) + 5]
    figure, panels = plt.subplots(1, len(TOLERANCES), figsize=(9, 3.8), sharey=True, layout="constrained")
    for index, panel in enumerate(panels):
        for name, values in profile(rows, shown, index).items():
            finite = [value for value in values if math.isfinite(value)]
            parts = [(number + 1) / len(values) for number in range(len(finite))]
            style = "-" if name in ours else "--"
            panel.step(
                [*finite, 64], [*parts, parts[-1]], style, where="post", label=name, linewidth=1 + (name == "auto")
            )
        panel.set(xscale="log", xlim=(1, 64), ylim=(0, 1), title=f"to {TOLERANCES[index]:g}")
        panel.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
        panel.minorticks_off()
        panel.set_xlabel("evaluations / fewest of these solvers")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"part of {len(rows)} solves")
    panels[-1].legend(fontsize=7, loc="lower right")
    figure.savefig(PICTURE, dpi=120)


def measured(chosen: list[Map], solvers: list[str], saved: Path | None) -> Rows:
    """The cells of these maps and solvers; progress goes to stderr, and counts to the file, map by map."""
    known = load(saved) if saved is not None and saved.exists() else {}
    rows: Rows = {}
    begun = time.monotonic()
    with threadpool_limits(1):
        for number, made in enumerate(chosen, 1):
            for start in STARTS:
                row = known.setdefault((made.name, start), {})
                for solver in solvers:
                    if solver not in row:
                        row[solver] = run(made, start, solver)
                rows[made.name, start] = row
            if saved is not None:
                save(saved, known)
            print(f"{number}/{len(chosen)} {made.name} {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    typer.run(main)
