"""Counts the calls of ``f`` until a tolerance is met, in the same way for this library, torchdeq and SciPy.

An evaluation is a call of ``f``, whatever its purpose: line searches and finite differences count. The residual is that
of the point at which ``f`` was called, relative to that of the start. The count is the number of the first call within
a tolerance, or None if none of the first 1000 is. All in float64. Requires torchdeq 0.1.0 and SciPy.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import anderson, newton_krylov
from torch import Tensor
from torchdeq.solver import anderson_solver, broyden_solver

import fixedpoint

TOLERANCES = (1e-3, 1e-6, 1e-10)
MOST = 1000
TINY = 1e-300  # a tolerance that is never met, so that only `Counted` ends the solve

Map = Callable[[Tensor], Tensor]
Counts = tuple[int | None, ...]


class EnoughError(Exception):
    """Raised when the last tolerance is met or the evaluations are used up."""


class Counted:
    """Counts the calls of ``f`` until its argument meets each tolerance; ``own`` holds the seconds between calls."""

    def __init__(self, f: Map) -> None:
        self.f = f
        self.calls = 0
        self.first = 0.0
        self.reached: list[int | None] = [None] * len(TOLERANCES)
        self.own = 0.0
        self._returned: float | None = None

    def __call__(self, z: Tensor) -> Tensor:
        if self._returned is not None:
            self.own += time.perf_counter() - self._returned
        value = self._counted(z)
        self._returned = time.perf_counter()
        return value

    def _counted(self, z: Tensor) -> Tensor:
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
    """The function ``f(z) - z`` of a numpy vector."""
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
SOLVERS: dict[str, fixedpoint.Solver] = {
    "auto": fixedpoint.Auto(),
    "Anderson, m = 5": fixedpoint.Anderson(memory=5),
    "Anderson, m = 10": fixedpoint.Anderson(memory=10),
    "Anderson, m = 10, adaptive": fixedpoint.Anderson(memory=10, adaptive="distance"),
    "Anderson type I, m = 10": fixedpoint.AndersonTypeOne(),
    "Anderson type I, m = 30": fixedpoint.AndersonTypeOne(memory=30),
    "Broyden, good, m = 200": fixedpoint.Broyden(memory=200),
    "Broyden, bad, m = 200": fixedpoint.Broyden(memory=200, update="bad"),
    "Newton-Krylov": fixedpoint.NewtonKrylov(),
    "Aitken": fixedpoint.Aitken(),
    "SQUAREM, cyclic": fixedpoint.Squarem(),
}
OURS: dict[str, Callable[[Map, Tensor], None]] = {name: ours(solver) for name, solver in SOLVERS.items()}


def count(solve: Callable[[Map, Tensor], None], f: Map, start: Tensor) -> tuple[Counts, float]:
    """Evaluations to each tolerance, and the seconds that the solver itself takes between two of them."""
    counted = Counted(f)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", RuntimeWarning)  # SciPy may divide by zero
            solve(counted, start)
    except (EnoughError, ValueError):  # SciPy raises a ValueError if its Jacobian is not finite
        pass
    return tuple(counted.reached), counted.own / max(counted.calls - 1, 1)
