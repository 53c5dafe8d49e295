"""Error and cost of the gradient estimators: a table and two pictures.

    python benchmarks/gradients.py

The map is a tanh cell of 64 unknowns with weights of 2-norm 0.9, for four rows in float64, solved by Broyden's method
to 1e-10. The table has the relative error of the gradient with respect to the weights, against the adjoint equation
solved by elimination; the vector-Jacobian products per row; and the bytes saved for the backward pass (without the
states before its segments, which checkpointing stores elsewhere). The first picture shows the error against the
tolerance of the adjoint solve, the second the saved bytes against the rounds of plain iteration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import fixedpoint
from fixedpoint.testing import tanh_cell

ASSETS = Path(__file__).resolve().parents[1] / "docs" / "assets"
PROBLEM = tanh_cell(size=64, gain=0.9, seed=0)
G = torch.randn(PROBLEM.start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ESTIMATORS: dict[str, Any] = {
    "one-step": "one-step",
    "neumann, 5 terms": fixedpoint.Neumann(5),
    "neumann, 20 terms": fixedpoint.Neumann(20),
    "phantom, 5 steps of 0.5": fixedpoint.Phantom(5, 0.5),
    "shine": "shine",
    "shine, refined 5 times": fixedpoint.Shine(refine=5),
    "implicit": fixedpoint.Implicit(termination=fixedpoint.Termination(rtol=1e-6)),
    "checkpointed-unrolled": fixedpoint.CheckpointedUnrolled(complete=False),
    "unrolled": fixedpoint.Unrolled(complete=False),
}
ADJOINT_SOLVERS = ("krylov", "anderson", "broyden", "picard")
ROUNDS = (5, 10, 15, 20, 30, 40, 50)


def solved(gradient: Any, solver: Any = "broyden", **termination: Any) -> tuple[torch.Tensor, fixedpoint.Solution, int]:
    """The weights, a solution that depends on them, and the bytes saved for the backward pass."""
    weight = PROBLEM.weight.clone().requires_grad_()
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)
        return tensor

    held: list[torch.Tensor] = []  # kept alive, so that no address is reused
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        solution = fixedpoint.solve(
            lambda z: torch.tanh((weight * z.unsqueeze(1)).sum(-1) + PROBLEM.offset),
            PROBLEM.start,
            solver=solver,
            gradient=gradient,
            termination=fixedpoint.Termination(**{"rtol": 1e-10, **termination}),
        )
    return weight, solution, sum(sizes.values())


def exact() -> torch.Tensor:
    """The gradient with respect to the weights, by elimination."""
    slope = 1 - PROBLEM.solution.square()
    jacobian = slope.unsqueeze(2) * PROBLEM.weight
    u = torch.linalg.solve(torch.eye(64, dtype=torch.float64) - jacobian.mT, G)
    return (u * slope).unsqueeze(2) * PROBLEM.solution.unsqueeze(1)


def error(gradient: Any) -> tuple[float, int]:
    """The relative error of the gradient of an estimator, and the products of its adjoint solve."""
    weight, solution, _ = solved(gradient)
    (found,) = torch.autograd.grad(solution.state, weight, G)
    report = solution.extras.get("adjoint")
    return float((found - exact()).norm() / exact().norm()), int(report.products.max()) if report else 0


def table() -> None:
    """Print the table."""
    print("| estimator | relative error | products to find u | KiB saved |")
    print("|:--|--:|--:|--:|")
    own = {"neumann, 5 terms": 4, "neumann, 20 terms": 19}
    for name, gradient in ESTIMATORS.items():
        gap, made = error(gradient)
        print(f"| {name} | {gap:.1e} | {own.get(name, made)} | {solved(gradient)[2] / 1024:.0f} |")


def picture() -> None:
    """Draw both pictures."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    tolerances = [10.0**-k for k in range(2, 13)]
    for solver in ADJOINT_SOLVERS:
        rules = [{"name": "implicit", "solver": solver, "termination": {"rtol": rtol}} for rtol in tolerances]
        errors = [error_at(rule) for rule in rules]
        left.loglog(tolerances, errors, marker=".", label=solver)
    left.loglog(tolerances, tolerances, color="grey", linestyle=":", label="error = tolerance")
    left.set(xlabel="relative tolerance of the adjoint solve", ylabel="relative error of the gradient")
    left.invert_xaxis()
    left.legend(title="adjoint solver")
    for name in ("implicit", "unrolled"):
        saved = [solved(ESTIMATORS[name], "picard", rtol=0.0, max_rounds=rounds)[2] / 1024 for rounds in ROUNDS]
        right.plot(ROUNDS, saved, marker=".", label=name)
    right.set(xlabel="rounds of plain iteration", ylabel="KiB saved for the backward pass", ylim=(0, None))
    right.legend()
    figure.savefig(ASSETS / "gradients.png", dpi=110)


def error_at(rule: Any) -> float:
    """The error of the gradient at a solution that is exact to rounding."""
    weight, solution, _ = solved(rule, "auto", rtol=1e-14, max_rounds=400)
    (found,) = torch.autograd.grad(solution.state, weight, G)
    return float((found - exact()).norm() / exact().norm())


def main() -> None:
    torch.set_num_threads(1)
    table()
    picture()


if __name__ == "__main__":
    main()
