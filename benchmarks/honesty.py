"""False claims of convergence: random problems, solvers, options, tolerances and dtypes.

    python benchmarks/honesty.py [--solves 20000]

Half of the solves of this library are of the classic problems, which other libraries solve as well. The other half are
of the kinds of ``honesty_kinds.py``, on which a wrong claim or a wrong gradient is most likely.

Every row that a solver reports as converged is evaluated again, with plain norms in float64, and its residual is
compared with the tolerance. SciPy's solvers claim convergence by returning without an exception, torchdeq's by the
residual that they report. They are judged at the point that they return, by the tolerance that they were given in their
own terms. A residual within 64 roundings of the value counts as within the tolerance. Requires torchdeq 0.1.0 and
SciPy.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.optimize
import torch
import typer
from honesty_kinds import KINDS
from rich.progress import track

import fixedpoint
from fixedpoint.plugin import Problem, registry
from fixedpoint_classic.problem import ClassicProblem

TASKS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "linear-contraction": lambda r: {"size": r.randint(1, 60), "radius": r.uniform(0.1, 0.999), "batch": 3},
    "tanh-cell": lambda r: {"size": r.randint(1, 60), "gain": r.uniform(0.2, 2.5), "batch": 3},
    "h-equation": lambda r: {"size": r.randint(4, 60), "c": [r.uniform(0.1, 1.0), 1 - 10 ** -r.uniform(1, 10)]},
    "bratu": lambda r: {"size": r.randint(2, 10), "lam": [r.uniform(0.5, 6.5)], "form": r.choice(["picard", "jacobi"])},
    "poisson-mixture-em": lambda _: {},
    "gaussian-mixture-em": lambda _: {"samples": 60, "batch": 2},
    "value-iteration": lambda r: {"states": r.randint(5, 30), "discount": r.uniform(0.3, 0.999), "batch": 2},
    "pagerank": lambda r: {"pages": r.randint(12, 60), "damping": r.uniform(0.3, 0.99), "batch": 2},
    "power-iteration": lambda r: {"size": r.randint(2, 40), "gap": r.uniform(0.01, 0.5), "batch": 2},
    "nnls": lambda r: {"size": r.randint(2, 25), "samples": 50, "batch": 2},
    "elastic-net": lambda r: {"size": r.randint(2, 25), "samples": 30, "batch": 2},
    "cp-als": lambda _: {"batch": 2},
}
OURS: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "auto": lambda _: {},
    "picard": lambda r: {"relaxation": r.choice([1.0, 0.5, 0.01])},
    "anderson": lambda r: {
        "memory": r.randint(1, 30),
        "relaxation": r.choice([1.0, 0.5, 0.01]),
        "filter": r.choice([0.0, 0.1]),
        "ridge": r.choice([0.0, 1e-3]),
        "surprise": r.choice([None, 1.5]),
        "adaptive": r.choice([None, "gain", "distance"]),
    },
    "anderson-type1": lambda r: {"memory": r.randint(1, 30)},
    "broyden": lambda r: {"memory": r.randint(1, 30), "update": r.choice(["good", "bad"])},
    "newton-krylov": lambda r: {"jacobian": r.choice(["auto", "difference"]), "memory": r.randint(2, 30)},
    "aitken": lambda _: {},
    "squarem": lambda r: {"scheme": r.choice(["cyclic", "squarem"])},
    "damped": lambda r: {"damping": r.choice([0.5, 0.01])},
    "restarted": lambda r: {"every": r.randint(1, 10)},
    "polyalgorithm": lambda _: {},
}
THEIRS = ("torchdeq-picard", "torchdeq-anderson", "torchdeq-broyden")
SCIPY: dict[str, Callable[..., Any]] = {
    "SciPy anderson": scipy.optimize.anderson,
    "SciPy broyden1": scipy.optimize.broyden1,
    "SciPy newton_krylov": scipy.optimize.newton_krylov,
}


def drawn(r: random.Random) -> ClassicProblem:
    name = r.choice(list(TASKS))
    options = {**TASKS[name](r), "dtype": r.choice(["float32", "float64"])}
    problem: ClassicProblem = registry.create("task", {"name": name, **options}).problem(r.randrange(10**6))
    if r.random() < 0.3:  # another start, possibly far away
        generator = torch.Generator().manual_seed(r.randrange(10**6))
        noise = torch.rand(problem.start.shape, generator=generator, dtype=torch.float64).to(problem.start)
        problem = problem.starting_at(problem.start + 10 ** r.uniform(-2, 0.5) * noise)
    return problem


def excess(problem: Problem, z: torch.Tensor, rtol: float, atol: float = 0.0) -> torch.Tensor:
    """The residual of every row, relative to its tolerance."""
    fz = problem(z.clone())
    residual = torch.linalg.vector_norm((fz - z).double(), dim=1)
    size = torch.linalg.vector_norm(fz.double(), dim=1)
    found: torch.Tensor = residual / (atol + (rtol + 64 * torch.finfo(z.dtype).eps) * size)
    return found


def by_ours(solver: Any, problem: Problem, rtol: float, rounds: int) -> tuple[int, int]:
    """The number of rows reported as converged and of false ones among them, for this library and wrapped torchdeq."""
    solution = fixedpoint.solve(problem, solver=solver, rtol=rtol, max_rounds=rounds)
    claimed = solution.converged
    if "claimed" in solution.extras:
        # In the terms of torchdeq: a relative or an absolute residual, and its own tolerance.
        claim = solution.extras["claimed"]
        claimed = claim.converged
        if not claim.relative:
            over = torch.linalg.vector_norm((solution.fstate - solution.state).double(), dim=1) / claim.tolerance
            return int(claimed.sum()), int((over.numpy()[claimed] > 1).sum())
        rtol = claim.tolerance
    over = excess(problem, solution.state, rtol)
    return int(claimed.sum()), int((over.numpy()[claimed] > 1).sum())


def by_scipy(name: str, problem: ClassicProblem, rtol: float, rounds: int) -> tuple[int, int]:
    """The same for SciPy, for the first row."""
    row = problem.to(torch.float64).take(torch.tensor([0]))
    size = float(torch.linalg.vector_norm(row(row.initial())))
    with contextlib.suppress(scipy.optimize.NoConvergence, ValueError, FloatingPointError, ZeroDivisionError):
        found = SCIPY[name](
            lambda x: row(torch.from_numpy(np.array(x)).unsqueeze(0))[0].numpy() - x,
            row.initial()[0].numpy(),
            f_tol=rtol * size,
            maxiter=rounds,
            tol_norm=np.linalg.norm,
        )
        z = torch.from_numpy(np.asarray(found)).unsqueeze(0)
        residual = float(torch.linalg.vector_norm(row(z) - z))
        return 1, int(not residual <= rtol * size * (1 + 1e-9))
    return 0, 0


def main(
    solves: int = typer.Option(
        20_000, min=2, help="Solves by this library's solvers; a quarter as many by the others."
    ),
    seed: int = typer.Option(0, help="Seed of all random numbers."),
) -> None:
    """Print the number of rows that each solver reported as converged, and of false ones among them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", RuntimeWarning)
    honest = of_kinds(solves // 2, random.Random(seed))
    if not (of_classic_problems(solves - solves // 2, random.Random(seed)) and honest):
        raise typer.Exit(1)


def of_kinds(solves: int, r: random.Random) -> bool:
    """Draw from every kind in turn; return whether there is no false claim and no wrong gradient."""
    found: dict[str, list[int]] = {name: [0, 0, 0, 0] for name in KINDS}
    where: list[str] = []
    names = list(KINDS)
    with torch.no_grad():
        for number in track(range(solves), description="kinds", total=solves):
            name, drawn_seed = names[number % len(names)], r.randrange(2**31)
            verdict = KINDS[name](random.Random(drawn_seed))
            parts = verdict.claimed, verdict.false, verdict.gradients, verdict.wrong
            found[name] = [one + other for one, other in zip(found[name], parts, strict=True)]
            if verdict.false or verdict.wrong:
                where.append(f"{name}, seed {drawn_seed}")
    print(f"{solves} solves of kinds\n\n| kind | rows called converged | of those not | gradients | of those wrong |")
    print("|:--|--:|--:|--:|--:|")
    for name, numbers in found.items():
        print(f"| {name} | {' | '.join(map(str, numbers))} |")
    print("\n" + "\n".join(where))
    return not where


def of_classic_problems(solves: int, r: random.Random) -> bool:
    """Draw from the classic problems; return whether this library makes no false claim."""
    claimed: Counter[str] = Counter()
    false: Counter[str] = Counter()
    raised: Counter[str] = Counter()
    names = [*OURS] * 2 + [*THEIRS, *SCIPY]
    done = 0
    with torch.no_grad():
        for number in track(range(2 * solves), description="solving", total=2 * solves):
            if done >= solves and number % len(names) == 0:
                break
            name = names[number % len(names)]
            problem = drawn(r)
            try:
                if name in SCIPY:
                    said, wrong = by_scipy(name, problem, 10 ** -r.uniform(1, 9), r.choice([20, 100, 400]))
                else:
                    solver = {"name": name, **(OURS[name](r) if name in OURS else {})}
                    rtol = 10 ** -r.uniform(1, 6 if problem.layout.dtype == torch.float32 else 12)
                    said, wrong = by_ours(solver, problem, rtol, r.choice([5, 20, 100, 400]))
                    done += name in OURS
            except Exception as error:  # solvers of other libraries may raise; ours must not
                if name in OURS:
                    raise RuntimeError(f"{name} on {replace(problem)!r:.200}") from error
                raised[name] += 1
                continue
            claimed[name] += said
            false[name] += wrong
    print(f"{done} solves of ours\n\n| solver | rows called converged | of those not | raised |")
    print("|:--|--:|--:|--:|")
    for name in dict.fromkeys(names):
        print(f"| {name} | {claimed[name]} | {false[name]} | {raised[name]} |")
    return not any(false[name] for name in OURS)


if __name__ == "__main__":
    typer.run(main)
