"""torchdeq and SciPy on seven classic problems: evaluations to a relative residual of 1e-3 / 1e-6 / 1e-10.

    python benchmarks/solver_table.py [--ours]

The problems are the tasks of ``configs/classic.yaml``. An evaluation is a call of ``f``, whoever made it and whatever
for: line searches and finite differences count. The residual is that of the point ``f`` was called at, relative to that
of the start; the count is that of the first call within the tolerance, or ``-`` where none of the first 1000 is. Prints
the measured counts, those published, and their quotients; float64, one thread. Wants torchdeq 0.1.0 and SciPy.

Counts vary by a few with the order in which sums are rounded where a method amplifies rounding: Broyden on the Jacobi
form of Bratu's problem, which is symmetric under reflections until rounding breaks that (105 to 124 evaluations to
1e-3), and Anderson without a ridge where the H-equation is nearly singular (31 to 74 to 1e-10).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy.optimize import anderson, newton_krylov
from torch import Tensor
from torchdeq.solver import anderson_solver, broyden_solver

import fixedpoint
from fixedpoint.config.runfile import load
from fixedpoint.registry import registry
from fixedpoint_classic.problem import ClassicTask

TOLERANCES = (1e-3, 1e-6, 1e-10)
MOST = 1000
CONFIG = Path(__file__).parents[1] / "configs" / "classic.yaml"
TINY = 1e-300  # a tolerance that is never met, so that it is `Counted` who ends the solve

Map = Callable[[Tensor], Tensor]
Counts = tuple[int | None, ...]

PUBLISHED = {
    "symmetric linear, rho .9": "40/101/187 16/173/454 16/41/78 17/34/57 15/34/62 15/47/80",
    "symmetric linear, rho .99": "343/-/- 44/-/- 49/164/337 42/89/143 38/128/271 31/96/130",
    "tanh cell, gain 1.5": "50/111/192 27/145/310 27/58/100 27/48/68 26/58/95 471/512/553",
    "H-equation, c = .99": "24/55/95 10/102/247 8/10/14 6/9/10 7/10/12 18/26/53",
    "H-equation, c = 1 - 1e-10": "75/-/- 6/-/- 9/18/34 9/16/24 6/36/51 22/72/158",
    "Bratu, lambda 6, Picard form": "12/24/40 5/41/101 5/7/10 5/7/9 5/8/10 12/21/56",
    "Bratu, lambda 5, Jacobi form": "-/-/- -/-/- 306/632/- 131/151/175 239/507/856 64/97/166",
}


class EnoughError(Exception):
    """The last tolerance is met, or the evaluations are spent."""


class Counted:
    """Counts the calls of ``f`` until its argument is a fixed point to each tolerance."""

    def __init__(self, f: Map) -> None:
        self.f = f
        self.calls = 0
        self.first = 0.0
        self.reached: list[int | None] = [None] * len(TOLERANCES)

    def __call__(self, z: Tensor) -> Tensor:
        if self.calls == MOST:
            raise EnoughError
        value = self.f(z)
        self.calls += 1
        residual = float((value - z).norm())
        self.first = self.first or residual
        for index, tolerance in enumerate(TOLERANCES):
            if self.reached[index] is None and residual <= tolerance * self.first:
                self.reached[index] = self.calls
        if self.reached[-1] is not None or not math.isfinite(residual):
            raise EnoughError
        return value


def picard(f: Map, z: Tensor) -> None:
    while True:
        z = f(z)


def torchdeq_anderson(f: Map, z: Tensor) -> None:
    anderson_solver(f, z, max_iter=MOST + 2, tol=TINY, stop_mode="rel")


def torchdeq_anderson_without_ridge(f: Map, z: Tensor) -> None:
    anderson_solver(f, z, max_iter=MOST + 2, tol=TINY, stop_mode="rel", lam=0.0)


def torchdeq_broyden(f: Map, z: Tensor) -> None:
    broyden_solver(f, z, max_iter=MOST, tol=TINY, stop_mode="rel")


def scipy_anderson(f: Map, z: Tensor) -> None:
    anderson(as_root(f), z.flatten().numpy(), alpha=1, M=6, maxiter=MOST, f_tol=TINY)


def scipy_newton_krylov(f: Map, z: Tensor) -> None:
    newton_krylov(as_root(f), z.flatten().numpy(), maxiter=MOST, f_tol=TINY)


def as_root(f: Map) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """``f(z) - z`` of a numpy vector."""
    return lambda x: f(torch.from_numpy(np.array(x)).unsqueeze(0))[0].numpy() - x


def ours(solver: object) -> Callable[[Map, Tensor], None]:
    """A solver of this library."""

    def solve(f: Map, z: Tensor) -> None:
        termination = fixedpoint.Termination(rtol=0.0, max_rounds=MOST, patience=MOST)
        fixedpoint.solve(f, z, solver=solver, termination=termination)

    return solve


THEIRS: dict[str, Callable[[Map, Tensor], None]] = {
    "Picard": picard,
    "torchdeq Anderson": torchdeq_anderson,
    "same, ridge 0": torchdeq_anderson_without_ridge,
    "torchdeq Broyden": torchdeq_broyden,
    "SciPy anderson alpha=1 M=6": scipy_anderson,
    "SciPy newton_krylov": scipy_newton_krylov,
}
OURS: dict[str, Callable[[Map, Tensor], None]] = {
    "auto": ours(fixedpoint.Auto()),
    "Anderson, m = 5": ours(fixedpoint.Anderson(memory=5)),
    "Anderson, m = 10": ours(fixedpoint.Anderson(memory=10)),
    "Anderson type I, m = 10": ours(fixedpoint.AndersonTypeOne()),
    "Anderson type I, m = 30": ours(fixedpoint.AndersonTypeOne(memory=30)),
    "Broyden, good, m = 200": ours(fixedpoint.Broyden(memory=200)),
    "Broyden, bad, m = 200": ours(fixedpoint.Broyden(memory=200, update="bad")),
    "Newton-Krylov": ours(fixedpoint.NewtonKrylov()),
    "Aitken": ours(fixedpoint.Aitken()),
    "SQUAREM, cyclic": ours(fixedpoint.Squarem()),
}


def count(solve: Callable[[Map, Tensor], None], f: Map, start: Tensor) -> Counts:
    """Evaluations to each tolerance."""
    counted = Counted(f)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", RuntimeWarning)  # SciPy divides by zero on its way
            solve(counted, start)
    except (EnoughError, ValueError):  # SciPy raises ValueError when its Jacobian is no longer finite
        pass
    return tuple(counted.reached)


def written(counts: Counts) -> str:
    return "/".join("-" if entry is None else str(entry) for entry in counts)


def quotient(measured: str, published: str) -> str:
    """Of every count, or whether both say ``-``."""
    pairs = zip(measured.split("/"), published.split("/"), strict=True)
    return "/".join(a if a == b == "-" else "!" if "-" in (a, b) else f"{int(a) / int(b):.2f}" for a, b in pairs)


def main(
    ours: bool = typer.Option(False, help="This library's solvers instead; nothing is published of them."),
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    solvers = OURS if ours else THEIRS
    config = load(CONFIG)
    print("| problem | " + " | ".join(solvers) + " |")
    print("|:--|" + "--:|" * len(solvers))
    for choice in config.tasks:
        task = registry.create("task", choice.config)
        assert isinstance(task, ClassicTask)
        problem = task.problem(config.seeds[0])
        cells = [written(count(solve, problem, problem.initial())) for solve in solvers.values()]
        print(f"| {choice.label} | " + " | ".join(cells) + " |", flush=True)
        if not ours:
            published = PUBLISHED[choice.label].split()
            print("| published | " + " | ".join(published) + " |")
            print("| quotient | " + " | ".join(map(quotient, cells, published)) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
