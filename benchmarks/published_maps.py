"""Counts maps on eleven problems of FixedPointTestProblems.jl, beside the published counts of SpeedMapping.jl.

    python benchmarks/published_maps.py [--only bratu --only als]

The problems are those of N. Lepage-Saucier's FixedPointTestProblems.jl, made anew from its definitions: data come from
the same congruential generator, so that they are the same to rounding. A solve is to ``||f(z) - z||_2 <= 1e-7``, the
rule of the published comparison (SpeedMapping.jl, docs/benchmarking_code, August 2025). "aa" is its Anderson
acceleration with 30 lags, plain or with adaptive relaxation, whichever takes fewer maps; "acx" is alternating cyclic
extrapolation, of which ``squarem`` is a kind. Problems that require data files or samplers of other
libraries are left out: three, and the lid-driven cavity.

These counts were looked at when the defaults of ``auto``, ``anderson`` and ``squarem`` were chosen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import scipy.sparse as sparse
import torch
import typer
from scipy.sparse.linalg import splu
from scipy.special import gammaln, ndtri

import fixedpoint

Vector = np.ndarray[Any, np.dtype[np.float64]]

SOLVERS: dict[str, Any] = {
    "auto": "auto",
    "anderson": "anderson",
    "anderson, 30": {"name": "anderson", "memory": 30},
    "broyden": "broyden",
    "squarem": "squarem",
    "picard": "picard",
}
MOST, TOLERANCE = 5000, 1e-7


@dataclass(frozen=True)
class Published:
    """A problem: its map, its start, and the published counts of Anderson acceleration and cyclic extrapolation."""

    f: Callable[[Vector], Vector]
    start: Vector
    aa: int
    acx: int


class Stream:
    """The congruential generator of the published problems: 32768 values, transformed to a distribution."""

    def __init__(self) -> None:
        self.state = 1

    def __call__(self, *shape: int, normal: bool = False) -> Vector:
        """Numbers in column-major order, uniform on [0, 1) or standard normal."""
        found = np.empty(int(np.prod(shape)))
        state = self.state
        for place in range(len(found)):
            state = (state * 3685477807 + 12345) // 65536 % 32768
            found[place] = state
        self.state = state
        uniform = (found / 32768.0).reshape(shape, order="F")
        return np.asarray(ndtri(uniform)) if normal else uniform


def poisson() -> Published:
    """EM of two Poisson distributions (Hasselblad 1969), kept where it is defined."""
    count = np.array([162.0, 267, 271, 185, 111, 61, 27, 8, 3, 1])
    y = np.arange(10.0)

    def f(z: Vector) -> Vector:
        share, means = np.clip(z[0], 1e-7, 1 - 1e-7), np.maximum(z[1:], 1e-7)
        law = np.exp(y * np.log(means)[:, None] - means[:, None] - gammaln(y + 1))
        one = share * law[0] / (share * law[0] + (1 - share) * law[1])
        weights = count * np.stack([one, 1 - one])
        return np.array([weights[0].sum() / count.sum(), *(weights @ y / weights.sum(1))])

    return Published(f, np.array([0.25, 1.0, 2.0]), 21, 52)


def exchange() -> Published:
    """Prices of ten goods in an exchange economy of five households."""
    stream = Stream()
    owned = np.exp(stream(10, 5, normal=True))
    tastes = stream(10, 5)

    def f(z: Vector) -> Vector:
        found = tastes @ ((z @ owned) / tastes.sum(0)) / owned.sum(1)
        return np.asarray(found / found[0])

    return Published(f, np.ones(10), 7, 7)


def normals() -> Published:
    """EM of three normal distributions in the plane, 1000 points; covariances are kept positive."""
    stream = Stream()
    parts = (
        (300, (0.0, 8.0), (2.0, 0.5, 2.0)),
        (200, (-4.0, 10.0), (2.0, -0.5, 12.0)),
        (500, (-3.0, 2.0), (4.0, 2.0, 3.0)),
    )
    drawn = []
    for count, mean, (first, mixed, second) in parts:
        z = stream(2, count, normal=True)
        x = np.sqrt(first) * z[0] + mean[0]
        slope = mixed / first
        drawn.append(np.stack([x, x * slope + z[1] * np.sqrt(second - mixed**2 / first) + mean[1] - slope * mean[0]]))
    data = np.concatenate(drawn, axis=1).T

    def f(z: Vector) -> Vector:
        shares = np.array([z[15], z[16], 1 - z[15] - z[16]])
        if shares.min() < 1e-4:
            shares = np.maximum(shares, 1e-4) / np.maximum(shares, 1e-4).sum()
        law = np.empty((len(data), 3))
        for number in range(3):
            mean, (a, b, c) = z[5 * number : 5 * number + 2], z[5 * number + 2 : 5 * number + 5]
            values, axes = np.linalg.eigh(np.array([[a, b], [b, c]]))
            values = np.maximum(values, 1e-7)
            along = (data - mean) @ axes
            law[:, number] = shares[number] * np.exp(-0.5 * (along**2 / values).sum(1)) / np.sqrt(values.prod())
        weights = law / law.sum(1, keepdims=True)
        found = np.empty(17)
        for number in range(3):
            w = weights[:, number]
            mean = w @ data / w.sum()
            off = data - mean
            spread = (off * w[:, None]).T @ off / w.sum()
            found[5 * number : 5 * number + 5] = *mean, spread[0, 0], spread[0, 1], spread[1, 1]
        found[15:] = weights[:, :2].mean(0)
        return found

    start = [0.0, 7.5, 2.0, 0.0, 1.0, -4.0, 12.0, 2.0, 0.0, 2.0, -2.0, 0.0, 4.0, 0.0, 2.0, 0.4, 0.2]
    return Published(f, np.array(start), 29, 55)


def correlation() -> Published:
    """The nearest correlation matrix by alternating projections (Higham & Strabic 2016, algorithm 5), ``mmb13``."""
    rows = (
        (1.0, 3.15946, 0.200885, 1.00195, -0.580897, 0.195261),
        (3.15946, 1.0, 12.6826, 3.35052, 8.17548, 16.936),
        (0.200885, 12.6826, 1.0, -0.0470641, 0.680691, 1.04237),
        (1.00195, 3.35052, -0.0470641, 1.0, -0.788383, -0.140854),
        (-0.580897, 8.17548, 0.680691, -0.788383, 1.0, 0.720099),
        (0.195261, 16.936, 1.04237, -0.140854, 0.720099, 1.0),
    )
    upper = np.triu_indices(6)

    def whole(part: Vector) -> Vector:
        found = np.zeros((6, 6))
        found[upper] = part
        return found + np.triu(found, 1).T

    def f(z: Vector) -> Vector:
        y, s = whole(z[:21]), whole(z[21:])
        values, axes = np.linalg.eigh(y - s)
        projected = (axes * np.maximum(values, 0)) @ axes.T
        s = projected - (y - s)
        np.fill_diagonal(projected, 1.0)
        return np.concatenate([projected[upper], s[upper]])

    return Published(f, np.concatenate([np.array(rows)[upper], np.zeros(21)]), 21, 60)


def power() -> Published:
    """Power iteration for ``1 + diag(1 .. 100)``."""
    matrix = np.ones((100, 100)) + np.diag(np.arange(1.0, 101.0))

    def f(z: Vector) -> Vector:
        found = matrix @ z
        return np.asarray(found / np.abs(found).max())

    return Published(f, np.ones(100), 13, 18)


def diagonal() -> Published:
    """Richardson's iteration for a diagonal system with the entries ``2 (1 .. 100) / 101``."""
    entries = 2 * np.arange(1.0, 101.0) / 101
    return Published(lambda z: np.asarray(z - (entries * z - 1)), np.zeros(100), 72, 108)


def als() -> Published:
    """Alternating least squares for a collinear tensor, 50 x 50 x 50, rank 3, two kinds of noise."""
    stream = Stream()
    factor = np.linalg.cholesky(0.9 * np.ones((3, 3)) + 0.1 * np.eye(3)).T
    factors = []
    for _ in range(3):
        made = stream(50, 3, normal=True)
        one, two = stream(50, 50, 50, normal=True), stream(50, 50, 50, normal=True)
        factors.append(np.linalg.qr(made)[0] @ factor)
    size = 1 / np.sqrt(99)
    tensor = np.einsum("ir,jr,kr->ijk", *factors)
    tensor = tensor + size * np.linalg.norm(tensor) / np.linalg.norm(one) * one
    scaled = two * tensor
    tensor = tensor + size * np.linalg.norm(tensor) / np.linalg.norm(scaled) * scaled

    def f(z: Vector) -> Vector:
        parts = [each.reshape(3, 50).T.copy() for each in z.reshape(3, 150)]
        for place, letters in enumerate(("ijk,jr,kr->ir", "ijk,ir,kr->jr", "ijk,ir,jr->kr")):
            one, two = (parts[other] for other in range(3) if other != place)
            right = np.einsum(letters, tensor, one, two, optimize=True).T
            found = np.linalg.solve((one.T @ one) * (two.T @ two), right)
            parts[place] = (found / np.abs(found).sum(1, keepdims=True)).T
        return np.concatenate([part.T.ravel() for part in parts])

    return Published(f, stream(450), 315, 64)


def bratu() -> Published:
    """Jacobi's iteration for Bratu's problem, lambda 6, 100 x 100."""
    width = 1 / 101

    def f(z: Vector) -> Vector:
        grid = np.pad(z.reshape(100, 100), 1)
        around = grid[:-2, 1:-1] + grid[2:, 1:-1] + grid[1:-1, :-2] + grid[1:-1, 2:]
        return np.asarray((around + width**2 * 6 * np.exp(grid[1:-1, 1:-1])) / 4).ravel()

    return Published(f, np.zeros(10000), 256, 2223)


def _field(method: str) -> tuple[Callable[[Vector], Vector], Vector]:
    """A sweep for the potential of two charged lines, 100 x 100 points, and the start."""
    size = 100
    source = np.zeros((size, size))
    source[24:75, 24] += (size - 1) ** 2 / (size * 0.5)
    source[24:75, 74] -= (size - 1) ** 2 / (size * 0.5)
    inside = np.zeros((size, size), dtype=bool)
    inside[1:-1, 1:-1] = True
    order = inside.ravel(order="F")  # a sweep goes down the columns
    count = (size - 2) ** 2
    line = sparse.diags_array([np.ones(size - 3)] * 2, offsets=[-1, 1])
    eye = sparse.eye_array(size - 2)
    around = sparse.csc_array(sparse.kron(eye, line) + sparse.kron(line, eye))
    right = source.ravel(order="F")[order] / (size - 1) ** 2
    omega = {"jacobi": 1.0, "gauss-seidel": 1.0, "sor": 1.94}[method]
    lower = sparse.tril(around, format="csc") if method != "jacobi" else sparse.csc_array((count, count))
    upper = around - lower
    solved = splu(sparse.csc_array(4 * sparse.eye_array(count) - omega * lower), permc_spec="NATURAL")

    def f(z: Vector) -> Vector:
        known = z[order]
        found = np.zeros_like(z)
        found[order] = solved.solve((1 - omega) * 4 * known + omega * (upper @ known + right))
        return found

    return f, source.ravel(order="F")


def jacobi_field() -> Published:
    """The electric field by Jacobi's iteration."""
    return Published(*_field("jacobi"), 353, 893)


def seidel_field() -> Published:
    """The electric field by Gauss-Seidel."""
    return Published(*_field("gauss-seidel"), 281, 432)


def sor_field() -> Published:
    """The electric field by successive over-relaxation, omega 1.94."""
    return Published(*_field("sor"), 373, 420)


PROBLEMS: dict[str, Callable[[], Published]] = {
    "poisson": poisson,
    "exchange": exchange,
    "normals": normals,
    "correlation": correlation,
    "power": power,
    "diagonal": diagonal,
    "als": als,
    "bratu": bratu,
    "field-seidel": seidel_field,
    "field-sor": sor_field,
    "field-jacobi": jacobi_field,
}


def counted(problem: Published, solver: Any) -> int | None:
    """The calls of the map to a solution, with the solver's own stopping rule; None if it finds none."""
    calls = 0

    def f(z: Vector) -> Vector:
        nonlocal calls
        calls += 1
        return problem.f(z)

    with warnings.catch_warnings(), torch.no_grad(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = fixedpoint.solve(f, problem.start, solver=solver, atol=TOLERANCE, rtol=0.0, max_rounds=MOST)
    off = np.linalg.norm(problem.f(np.asarray(found.z)) - np.asarray(found.z))
    return calls if off <= 1.001 * TOLERANCE else None


def main(
    only: Annotated[list[str] | None, typer.Option(help="Repeat for several problems; by default all.")] = None,
) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| problem | unknowns | published aa | published acx | " + " | ".join(SOLVERS) + " |")
    print("|:--|--:|--:|--:|" + "--:|" * len(SOLVERS))
    for name, make in PROBLEMS.items():
        if only and name not in only:
            continue
        problem = make()
        counts = (counted(problem, solver) for solver in SOLVERS.values())
        cells = " | ".join("-" if count is None else str(count) for count in counts)
        print(f"| {name} | {len(problem.start)} | {problem.aa} | {problem.acx} | {cells} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
