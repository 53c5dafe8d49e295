"""Solvers of adjoint equations on thirty equations: the measurement behind the default.

    python benchmarks/adjoints.py [--seconds 0.5] [--all]

The equations ``u = K u + g`` are those of the five models of ``training.py``, in single precision, with the Jacobian of
the cell at its fixed point scaled to a spectral radius: as it is, 0.9, and 1.5, where plain iteration diverges; each to
1e-2 and to 1e-4. ``K`` is a recorded vector-Jacobian product, scaled. The solvers take turns, and times are relative to
the default, the median over the turns; the table has their geometric mean, the products of a row, the rows that are not
solved within 200 products, and the largest error of a row said to be solved, in units of the tolerance. ``--all``
prints every equation.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from training import CASES, Case

import fixedpoint
from fixedpoint.gradients.adjoint import solve_adjoint
from fixedpoint.gradients.direct import defect
from fixedpoint.gradients.recorded import products, severed
from fixedpoint.gradients.report import AdjointReport, AdjointWarning
from fixedpoint.layers import EquilibriumLayer, spectral_radius

SOLVERS = {
    "default": fixedpoint.Krylov(),
    "GMRES": fixedpoint.Krylov("gmres"),
    "BiCGSTAB": fixedpoint.Krylov("bicgstab"),
    "plain": fixedpoint.Picard(),
    "Anderson": fixedpoint.Anderson(),
    "Broyden": fixedpoint.Broyden(),
}
RADII = {"as it is": None, "0.9": 0.9, "1.5": 1.5}
TOLERANCES = (1e-2, 1e-4)


@dataclass
class Tally:
    """What a solver did on some equations."""

    ratios: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    unsolved: int = 0
    rows: int = 0
    worst: float = 0.0

    def add(self, other: Tally) -> None:
        """Count another one's equations as well."""
        self.ratios += other.ratios
        self.products += other.products
        self.unsolved += other.unsolved
        self.rows += other.rows
        self.worst = max(self.worst, other.worst)

    def cells(self) -> str:
        """The cells of the table."""
        return (
            f"{statistics.geometric_mean(self.ratios):.2f} | {statistics.mean(self.products):.1f} | "
            f"{self.unsolved / self.rows:.1%} | {self.worst:.2f}"
        )


def recorded(case: Case) -> tuple[Tensor, Tensor, Tensor, float]:
    """The fixed point with its recorded value, the cotangent of the loss, and the spectral radius there."""
    rule = fixedpoint.Termination(rtol=1e-5, max_rounds=400)
    layer = EquilibriumLayer(case.cell, solver="anderson", training=rule, on_failure="ignore")
    with torch.no_grad():
        found = layer(case.x)
    found.requires_grad_()
    (g,) = torch.autograd.grad(case.loss(found), found)
    rows = slice(0, 8)  # of the largest few; the radius of a case is that of its first rows
    radius = spectral_radius(lambda z: case.cell(z, case.x[rows]), found.detach()[rows], rtol=1e-2, max_products=60)
    with torch.enable_grad():
        z = severed(found.detach().flatten(1))
        fz = case.cell(z.view_as(case.x), case.x).flatten(1)
    return z, fz, g.flatten(1), float(radius.value.max())


def scaled(factor: float, fz: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """A scaled product with the transposed Jacobian."""
    return factor * products(fz, z, v)


def equation(linear: Callable[[Tensor], Tensor], g: Tensor, rtol: float, seconds: float) -> dict[str, Tally]:
    """Solve one equation by all solvers, in turns."""
    rule = fixedpoint.Termination(rtol=rtol, max_rounds=200)
    times: dict[str, list[float]] = {name: [] for name in SOLVERS}
    found = {name: Tally() for name in SOLVERS}
    end = time.perf_counter() + seconds
    while len(times["default"]) < 3 or time.perf_counter() < end:
        for name, solver in SOLVERS.items():
            report = AdjointReport()
            begun = time.perf_counter()
            u = solve_adjoint(linear, g, solver, rule, "warn", report)
            times[name].append(time.perf_counter() - begun)
            if len(times[name]) == 1:
                solved, tally = report.converged, found[name]
                tally.products, tally.rows = [float(report.products.mean())], len(g)
                tally.unsolved = int((~solved).sum())
                tally.worst = float((defect(linear, g, u)[solved] / rtol).max(initial=0.0))
    for name, several in times.items():
        found[name].ratios = [
            statistics.median(one / other for one, other in zip(several, times["default"], strict=True))
        ]
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--all", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", AdjointWarning)
    totals = {kind: {name: Tally() for name in SOLVERS} for kind in RADII}
    for name, make in CASES.items():
        torch.manual_seed(0)
        z, fz, g, radius = recorded(make())
        for kind, wanted in RADII.items():
            factor = 1.0 if wanted is None else wanted / radius
            for rtol in TOLERANCES:
                found = equation(partial(scaled, factor, fz, z), g, rtol, asked.seconds)
                for solver, tally in found.items():
                    totals[kind][solver].add(tally)
                    if asked.all:
                        print(
                            f"{name}, radius {factor * radius:.2f}, {rtol:.0e}, {solver}: {tally.cells()}", flush=True
                        )
    print("| spectral radius | solver | time | products | unsolved | largest error |")
    print("|:--|:--|--:|--:|--:|--:|")
    for kind, by_solver in totals.items():
        for solver, tally in by_solver.items():
            print(f"| {kind} | {solver} | {tally.cells()} |")


if __name__ == "__main__":
    main()
