"""Compares the solvers of this library, torchdeq and SciPy on classic problems, in one process.

    python benchmarks/solvers.py             the seven problems of ``configs/classic.yaml``, with published counts
    python benchmarks/solvers.py --all       all of ``fixedpoint_classic``, five seeds: a performance profile

Counts are evaluations of ``f`` until the residual is 1e-3 / 1e-6 / 1e-10 of the first one (``counted.py``).

Where a method amplifies rounding, counts vary by a few with the order in which sums are rounded: for Broyden on the
Jacobi form of Bratu's problem, which is symmetric under reflections until rounding breaks that (105 to 124 evaluations
to 1e-3), and for Anderson without a ridge where the H-equation is nearly singular (31 to 74 to 1e-10).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import typer
from counted import MOST, OURS, SOLVERS, THEIRS, TOLERANCES, Counts, count
from honesty import by_ours, by_scipy

from fixedpoint.config.runfile import load
from fixedpoint.plugin import registry
from fixedpoint_classic.problem import ClassicProblem, ClassicTask

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "classic.yaml"
PICTURE = ROOT / "docs" / "assets" / "performance-profile.png"

PUBLISHED = {
    "symmetric linear, rho .9": "40/101/187 16/173/454 16/41/78 17/34/57 15/34/62 15/47/80",
    "symmetric linear, rho .99": "343/-/- 44/-/- 49/164/337 42/89/143 38/128/271 31/96/130",
    "tanh cell, gain 1.5": "50/111/192 27/145/310 27/58/100 27/48/68 26/58/95 471/512/553",
    "H-equation, c = .99": "24/55/95 10/102/247 8/10/14 6/9/10 7/10/12 18/26/53",
    "H-equation, c = 1 - 1e-10": "75/-/- 6/-/- 9/18/34 9/16/24 6/36/51 22/72/158",
    "Bratu, lambda 6, Picard form": "12/24/40 5/41/101 5/7/10 5/7/9 5/8/10 12/21/56",
    "Bratu, lambda 5, Jacobi form": "-/-/- -/-/- 306/632/- 131/151/175 239/507/856 64/97/166",
}


# Calls of the solvers of other libraries, for the claims that they make.
TORCHDEQ: dict[str, object] = {
    "torchdeq Anderson": "torchdeq-anderson",
    "same, ridge 0": {"name": "torchdeq-anderson", "lam": 0.0},
    "torchdeq Broyden": "torchdeq-broyden",
}
SCIPY = {"SciPy anderson alpha=1 M=6": "SciPy anderson", "SciPy newton_krylov": "SciPy newton_krylov"}

# Variations of the long comparison: sizes and difficulties around the defaults.
SUITE = (
    "{name: linear-contraction, size: 200, radius: 0.9}",
    "{name: linear-contraction, size: 200, radius: 0.99}",
    "{name: linear-contraction, size: 200, radius: 0.95, departure: 0.5}",
    "{name: tanh-cell, size: 100, gain: 1.0}",
    "{name: tanh-cell, size: 100, gain: 1.5}",
    "{name: h-equation, c: [0.9]}",
    "{name: h-equation, c: [0.99]}",
    "{name: h-equation, c: [0.999999]}",
    "{name: bratu, lam: [6.0], form: picard}",
    "{name: bratu, size: 16, lam: [5.0], form: jacobi}",
    "{name: poisson-mixture-em}",
    "{name: gaussian-mixture-em}",
    "{name: value-iteration}",
    "{name: pagerank}",
    "{name: power-iteration}",
    "{name: nnls}",
    "{name: elastic-net}",
    "{name: cp-als}",
)


def written(counts: Counts) -> str:
    return "/".join("-" if entry is None else str(entry) for entry in counts)


def read(text: str) -> Counts:
    return tuple(None if entry == "-" else int(entry) for entry in text.split("/"))


def quotient(measured: str, published: str) -> str:
    """The quotient of every pair of counts; ``-`` if both are ``-``, ``!`` if only one is."""
    pairs = zip(measured.split("/"), published.split("/"), strict=True)
    return "/".join(a if a == b == "-" else "!" if "-" in (a, b) else f"{int(a) / int(b):.2f}" for a, b in pairs)


def best(rows: Iterable[Counts]) -> Counts:
    """The smallest count to every tolerance."""
    columns = zip(*rows, strict=True)
    return tuple(min((entry for entry in column if entry is not None), default=None) for column in columns)


def seven() -> None:
    """Print the table of the seven problems, and the default compared with the best of the others."""
    config = load(CONFIG)
    print("| problem | " + " | ".join([*THEIRS, *OURS]) + " |")
    print("|:--|" + "--:|" * (len(THEIRS) + len(OURS)))
    quotients: dict[str, list[float]] = {"published": [], "measured": []}
    shipped: dict[str, list[float]] = {"published": [], "measured": []}
    for choice in config.tasks:
        task = registry.create("task", choice.config)
        assert isinstance(task, ClassicTask)
        problem = task.problem(config.seeds[0])
        theirs = {name: count(solve, problem, problem.initial())[0] for name, solve in THEIRS.items()}
        ours = {name: count(solve, problem, problem.initial())[0] for name, solve in OURS.items()}
        print(f"| {choice.label} | " + " | ".join(map(written, [*theirs.values(), *ours.values()])) + " |", flush=True)
        published = PUBLISHED[choice.label].split()
        compared = map(quotient, map(written, theirs.values()), published)
        print(
            "| published, quotient | "
            + " | ".join(f"{p}, {q}" for p, q in zip(published, compared, strict=True))
            + " |"
        )
        for kind, rows in (("published", map(read, published)), ("measured", theirs.values())):
            least = best(rows)
            quotients[kind] += _quotients(ours["auto"], least)
            shipped[kind] += _quotients(best(ours.values()), least)
    for kind, values in quotients.items():
        mean = math.exp(float(np.mean(np.log(values))))
        print(f"\nauto / best of theirs, {kind}: at most {max(values):.2f}, geometric mean {mean:.3f}")
        print(f"best of ours / best of theirs, {kind}: at most {max(shipped[kind]):.2f}")


def _quotients(ours: Counts, theirs: Counts) -> list[float]:
    return [math.inf if a is None else a / b for a, b in zip(ours, theirs, strict=True) if b is not None]


def suite(seeds: int) -> Iterator[tuple[str, ClassicProblem]]:
    """All problems of the long comparison, those without a seed only once."""
    for text in SUITE:
        config = load_one(text)
        for seed in range(seeds):
            yield f"{text} seed {seed}", registry.create("task", config).problem(seed)
            if config["name"] in ("h-equation", "bratu", "poisson-mixture-em"):  # the seed changes nothing
                break


def load_one(text: str) -> dict[str, object]:
    from ruamel.yaml import YAML

    found: dict[str, object] = YAML(typ="safe").load(text)
    return found


def every(seeds: int) -> None:
    """Print failures, false claims, mean counts and overhead over all problems; draw the performance profile."""
    solvers = {**{f"{name} (ours)": solve for name, solve in OURS.items()}, **THEIRS}
    table: dict[str, list[Counts]] = {name: [] for name in solvers}
    own: dict[str, list[float]] = {name: [] for name in solvers}
    claims: dict[str, list[int]] = {name: [0, 0] for name in solvers}
    for label, problem in suite(seeds):
        for name, solve in solvers.items():
            counts, seconds = count(solve, problem, problem.initial())
            table[name].append(counts)
            own[name].append(seconds)
            said, wrong = claimed(name, problem)
            claims[name][0] += said
            claims[name][1] += wrong
        print(label, *(f"{name} {written(rows[-1])}" for name, rows in table.items()), sep=" | ", flush=True)
    smallest = [best(rows) for rows in zip(*table.values(), strict=True)]
    print(
        f"\n| solver | not reached within {MOST} | within twice the best | geometric mean of count / best "
        "| called converged at 1e-6, of those not | own ms an evaluation |"
    )
    print("|:--|" + "--:|" * 5)
    ratios = {name: _ratios(rows, smallest) for name, rows in table.items()}
    for name, values in sorted(ratios.items(), key=lambda item: float(-np.mean(item[1] <= 2))):
        failed = np.isinf(values).sum(axis=0)
        finite = np.where(np.isinf(values), 2 * MOST / 10, values)
        mean = np.exp(np.log(finite).mean(axis=0))
        within = (values <= 2).mean(axis=0)
        cells = (
            " / ".join(map(str, failed)),
            " / ".join(f"{part:.0%}" for part in within),
            " / ".join(f"{value:.2f}" for value in mean),
            "-" if name == "Picard" else "{}, {}".format(*claims[name]),
            f"{1e3 * float(np.median(own[name])):.2f}",
        )
        print(f"| {name} | " + " | ".join(cells) + " |")
    _draw(ratios, len(smallest))


def claimed(name: str, problem: ClassicProblem) -> tuple[int, int]:
    """Whether a solver, with a tolerance of 1e-6 in its own terms, claims convergence, and whether that is false."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", RuntimeWarning)
        if name in SCIPY:
            return by_scipy(SCIPY[name], problem, 1e-6, MOST)
        if name == "Picard":
            return 0, 0
        return by_ours(TORCHDEQ.get(name) or SOLVERS[name.removesuffix(" (ours)")], problem, 1e-6, MOST)


def _ratios(rows: list[Counts], smallest: list[Counts]) -> np.ndarray:
    return np.array(
        [
            [math.inf if a is None or b is None else a / b for a, b in zip(counts, least, strict=True)]
            for counts, least in zip(rows, smallest, strict=True)
        ]
    )


def _draw(ratios: dict[str, np.ndarray], problems: int) -> None:
    """Draw the share of problems solved within a multiple of the fewest evaluations (Dolan & More 2002)."""
    figure, axes = plt.subplots(1, len(TOLERANCES), figsize=(13, 4.6), sharey=True, layout="constrained")
    factors = np.geomspace(1, 30, 300)
    for index, (axis, tolerance) in enumerate(zip(axes, TOLERANCES, strict=True)):
        for number, (name, values) in enumerate(ratios.items()):
            share = [(values[:, index] <= factor * (1 + 1e-12)).mean() for factor in factors]
            ours = name.endswith("(ours)")
            axis.plot(
                factors,
                share,
                "-" if ours else "--",
                color=f"C{number % 10}",
                linewidth=2.5 if number == 0 else 1.2,
                label=name,
            )
        axis.set(xscale="log", xlim=(1, 30), ylim=(0, 1.02), title=f"residual {tolerance:g} of the first")
        axis.set_xlabel("evaluations / fewest")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"part of {problems} problems solved")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(PICTURE, dpi=110)
    print(f"\nwrote {PICTURE.relative_to(ROOT)}")


def main(
    all: bool = typer.Option(False, "--all", help="Every problem, with a performance profile."),
    seeds: int = typer.Option(5, min=1, help="Seeds of every problem."),
) -> None:
    """Run the comparison."""
    torch.set_num_threads(1)
    if all:
        every(seeds)
    else:
        seven()


if __name__ == "__main__":
    typer.run(main)
