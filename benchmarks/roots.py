"""Roots of published systems of equations, by this library and by SciPy, and false roots of random equations.

    python benchmarks/roots.py [--equations 10000]

A system counts as solved if ``||g||_inf <= 1e-4`` at the point that is returned, whatever is claimed of it. Both ``g``
and ``-g`` are solved. Every method runs with its defaults; this library's gets ``g`` of tensors, and the column
``numpy`` is its default with a ``g`` of arrays, which has no derivatives. Costs are evaluations of ``g``, with products
with its Jacobian counted as evaluations. SciPy's ``hybr`` and ``lm`` compute Jacobians by differences. Where they are
not equal, the costs of ``g`` and ``-g`` are both given. ``-``: not solved.

The random equations are those of ``random_equations``, a third of them without a root. A root is false if it is claimed
where there is none, or away from every one there is.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import torch
import typer
from numpy.typing import NDArray
from root_problems import CLASSIC, SCIPY, Equations
from torch import Tensor

import fixedpoint

SMALL = 1e-4
OURS: dict[str, Any] = {
    "default": "auto",
    "newton": "newton",
    "trust-region": "trust-region",
    "newton-krylov": "newton-krylov",
    "broyden": "broyden",
}
THEIRS = ("hybr", "lm", "broyden1", "broyden2", "anderson", "krylov", "df-sane")
METHODS = (*OURS, "numpy", *THEIRS)


@dataclass(frozen=True)
class Outcome:
    """Whether the point that a method returned is a root, and its evaluations, products included."""

    solved: bool
    cost: int


def outcome(equations: Equations, method: str, sign: float = 1.0) -> Outcome:
    """Solve ``sign * g = 0`` by one of ``METHODS``."""

    def arrays(x: NDArray[np.float64]) -> NDArray[np.float64]:
        value: NDArray[np.float64] = sign * equations.g(torch.from_numpy(np.array(x, dtype=np.float64))).numpy()
        return value

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if method in THEIRS:
            found, cost = _by_scipy(arrays, equations.z0.numpy(), method)
        else:
            inputs = (arrays, equations.z0.numpy()) if method == "numpy" else (_times(sign, equations.g), equations.z0)
            solution = fixedpoint.find_root(*inputs, solver=OURS.get(method, "auto"))
            found, cost = np.asarray(solution.z), int(solution.evaluations[0] + solution.counts.products[0])
        size = np.abs(arrays(found)).max() if np.isfinite(found).all() else math.inf
    return Outcome(bool(size <= SMALL), cost)


def _times(sign: float, g: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: sign * g(x)


def _by_scipy(
    g: Callable[[NDArray[np.float64]], NDArray[np.float64]], start: NDArray[np.float64], method: str
) -> tuple[NDArray[np.float64], int]:
    """Return the point and the calls of a method of ``scipy.optimize.root``; the start if it raises."""
    calls = 0

    def counted(x: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal calls
        calls += 1
        if calls > 20_000:
            raise OverflowError
        return g(x)

    try:
        point = scipy.optimize.root(counted, start, method=method).x
    except (ValueError, OverflowError, ZeroDivisionError, FloatingPointError, np.linalg.LinAlgError):
        return start, calls
    return np.asarray(point), calls


def random_equations(r: random.Random, rows: int) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """Return equations of one unknown, one a row and all of one shape, with parameters of their own.

    Returns the function, the roots ``(rows, k)``, NaN in a third of all calls, where there is none, and the starts
    ``(rows, 1)``.
    """
    generator = torch.Generator().manual_seed(r.getrandbits(32))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, 1, generator=generator, dtype=torch.float64)

    least, a = 10 ** uniform(-3, 0), uniform(-3, 3)
    none = torch.full_like(a, math.nan)
    without: list[Callable[[Tensor], Tensor]] = [
        lambda x: x * x + least,
        lambda x: torch.exp(-x),
        lambda x: torch.exp(-x * x),
        lambda x: torch.cosh(x) - 1 + least,
        lambda x: torch.atan(x) + 2,
        lambda x: torch.sqrt(x * x + least),
        lambda x: torch.where(x < 0, -1.0, 2.0).to(x),
        lambda x: 1 / (1 + x * x),
        lambda x: (x * x - 1) ** 2 + least,
        lambda x: x**4 - x**3 + x * x + least,
    ]
    having: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (lambda x: x**3 - a**3, a),
        (lambda x: torch.exp(x) - torch.exp(a), a),
        (lambda x: torch.atan(x - a), a),
        (lambda x: (x - a) * (x * x + least), a),
        (lambda x: (x - a) * (x - a - 1) * (x + 5), torch.cat([a, a + 1, torch.full_like(a, -5.0)], dim=1)),
        (lambda x: torch.tanh(x - a) + least * (x - a), a),
        (lambda x: torch.cos(x) - x, torch.full_like(a, 0.7390851332151607)),
        (lambda x: (x - a) ** 2, a),
        (lambda x: torch.where(x < a, 10.0, 1.0) * (x - a), a),
        (lambda x: (x - a).sign() * (x - a).abs().sqrt(), a),
    ]
    shape, roots = (r.choice(without), none) if r.random() < 1 / 3 else r.choice(having)
    width, shift, units = 10 ** uniform(-3, 3), uniform(-20, 20), 10 ** uniform(-6, 6) * uniform(-1, 1).sign()
    starts = 10 ** uniform(-1, 1.5) * torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    return lambda z: units * shape(z / width - shift), (roots + shift) * width, (starts + shift) * width


def false_roots(count: int, seed: int, rows: int = 50, solver: Any = "auto") -> dict[str, int]:
    """Solve ``count`` random equations, ``rows`` at a time; count those with a root, claimed roots, and false ones."""
    r = random.Random(seed)
    told = {"equations": 0, "with a root": 0, "claimed": 0, "false": 0}
    for _ in range(-(-count // rows)):
        g, roots, z0 = random_equations(r, rows)
        solution = fixedpoint.find_root(g, z0, solver=solver)
        z = solution.z
        has = ~roots.isnan().any(dim=1)
        off = (z - roots).abs().amin(dim=1)
        # At a double root the distance is twice the step. A g that is 0 in all digits has as many roots. A g that has
        # underflowed at the start already is no equation.
        near = (has & ((off <= 1e-4 * z[:, 0].abs()) | (g(z)[:, 0] == 0))) | (g(z0)[:, 0] == 0)
        told["equations"] += len(z)
        told["with a root"] += int(has.sum())
        told["claimed"] += int(solution.converged.sum())
        told["false"] += int((torch.from_numpy(solution.converged) & ~near).sum())
    return told


def table(problems: dict[str, Equations], methods: tuple[str, ...] = METHODS) -> list[list[str]]:
    """Return the rows of the table: a system and its costs; the last row counts the solved ones."""
    rows, solved = [], dict.fromkeys(methods, 0)
    for name, equations in problems.items():
        cells = []
        for method in methods:
            both = [outcome(equations, method, sign) for sign in (1.0, -1.0)]
            solved[method] += all(each.solved for each in both)
            shown = [str(each.cost) if each.solved else "-" for each in both]
            cells.append(shown[0] if shown[0] == shown[1] else " / ".join(shown))
        rows.append([name, *cells])
    return [*rows, ["solved, both signs", *(str(count) for count in solved.values())]]


def main(equations: int = typer.Option(10_000, help="number of random equations")) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    for title, problems in (("the 23 problems", CLASSIC), ("SciPy's own", SCIPY)):
        print(f"\n{title}\n")
        print("| | " + " | ".join(METHODS) + " |")
        print("|:--|" + "--:|" * len(METHODS))
        for row in table(problems):
            print("| " + " | ".join(row) + " |")
    print("\nrandom equations\n")
    print(false_roots(equations, seed=21))


if __name__ == "__main__":
    typer.run(main)
