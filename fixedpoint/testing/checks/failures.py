"""Checks that a solve that cannot succeed reports so and returns a finite point."""

from __future__ import annotations

from collections.abc import Iterator

from fixedpoint.core.status import Status
from fixedpoint.testing.bench import Bench, require, sound
from fixedpoint.testing.checks.table import check
from fixedpoint.testing.plain_bench import PlainBench


@check("nonfinite")
def nonfinite(bench: Bench) -> str:
    """A row whose function returns NaN or Inf ends "nonfinite" with a finite point; the others converge."""
    problem = next(iter(bench.contractions().values()))
    # A solver that never ends the bad row goes on to the limit, which must leave the other rows enough rounds.
    sane = bench.solve(problem, rtol=1e-10, max_rounds=5000).counts
    limit = 100 + 3 * sane.rounds
    later = min(3, sane.calls - 1)  # within the solve
    for value in (float("nan"), float("inf"), float("-inf")):
        for grace in (0, later):
            name = f"{value} after {grace} evaluations"
            solution = bench.solve(bench.poisoned(problem, 1, value, grace), rtol=1e-10, max_rounds=limit)
            sound(solution, name)
            label = solution.status[1].label
            require(solution.status[1] is Status.NONFINITE, f"{name}: ended {label}")
            healthy = [solution.status[row] for row in (0, 2, 3)]
            require(all(s is Status.CONVERGED for s in healthy), f"{name}: the other rows ended {healthy}")
    if isinstance(bench, PlainBench):
        sound(bench.solve(bench.walled(), rtol=1e-10, max_rounds=500), "a function with a domain")
    return "NaN, Inf and -Inf, at once and later"


@check("diverging")
def diverging(bench: Bench) -> str:
    """Solves that diverge, or have no solution, end with a status and a finite point.

    They never end as "converged" if there is no solution.
    """
    endings = []
    for name, problem in bench.diverging().items():
        solution = bench.solve(problem, rtol=1e-8, max_rounds=400)
        sound(solution, name)
        hopeless = name.startswith("map without")
        require(not (hopeless and solution.converged.any()), f"{name}: said it converged")
        require(bool(solution.error.isfinite().all()), f"{name}: the reported error is not finite")
        endings.append("/".join(sorted({status.label for status in solution.status})))
    return ", ".join(endings)


@check("exception")
def exception(bench: Bench) -> str:
    """An exception raised by the function propagates unchanged: the same object, not wrapped."""
    problem = next(iter(bench.contractions().values()))
    error = _RaisedByTheFunctionError("raised by the function")
    try:
        bench.solve(bench.raising(problem, error))
    except Exception as caught:
        if error not in _chain(caught):
            raise  # an error of the solver itself
        require(caught is error, f"arrived as {type(caught).__name__}: {caught}")
        return "the same object"
    require(False, "was swallowed")
    return ""


@check("degenerate")
def degenerate(bench: Bench) -> str:
    """Solves with degenerate histories end with a status and a finite point.

    The cases are a constant map and unknowns that are solved from the start (which must both converge), period two, a
    single unknown, more memory than unknowns, and equal unknowns.
    """
    for name, problem in bench.degenerate().items():
        solution = bench.solve(problem, rtol=1e-8, max_rounds=3000)
        sound(solution, name)
        if name in ("constant map", "unknowns solved from the start"):
            require(bool(solution.converged.all()), f"{name}: ended {solution!r}")
    return f"{len(bench.degenerate())} problems"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, and the exceptions it was raised from or while handling."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class _RaisedByTheFunctionError(Exception):
    pass
