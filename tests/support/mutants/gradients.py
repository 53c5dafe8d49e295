"""Mutants of gradient estimators: for every check, estimators broken in the way that the check must catch.

Most of these defects were found in published code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import option
from fixedpoint.core.solution import Solution
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Termination
from fixedpoint.gradients.estimator import GradientEstimator, with_gradient_of
from fixedpoint.gradients.implicit import Implicit
from fixedpoint.gradients.one_step import OneStep
from fixedpoint.gradients.recorded import forward_products, products, recorded
from fixedpoint.gradients.report import AdjointReport

__all__ = ["GRADIENT_MUTANTS"]

_TIGHT = Implicit(termination=Termination(rtol=1e-10))


@dataclass(frozen=True)
class _Plain(GradientEstimator):
    """The implicit gradient by two hundred terms of the Neumann series; the mutants derive from it."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        value = solution.state.detach()
        z, fz = recorded(f.value, value)
        return with_gradient_of(value, fz, lambda g: self.spoilt(g, fz, z))

    def spoilt(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        """Return the adjoint for the cotangent ``g``; the mutants override this."""
        return self.series(g, fz, z)

    def series(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        """Return ``(I - J^T)^{-1} g``."""
        total = term = g
        for _ in range(200):
            term = products(fz, z, term)
            total = total + term
        return total


@dataclass(frozen=True)
class MovesTheValue(GradientEstimator):
    """Returns f(z), whose graph it has, in place of z."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        return f.value(solution.state.detach())


@dataclass(frozen=True)
class ForgetsTheTranspose(GradientEstimator):
    """Solves with J in place of its transpose, which does not show on symmetric maps."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        value = solution.state.detach()
        z, fz = recorded(f.value, value)

        def solved(g: Tensor) -> Tensor:
            product = forward_products(fz, z)
            total = term = g
            for _ in range(200):
                term = product(term)
                total = total + term
            return total

        return with_gradient_of(value, fz, solved)


@dataclass(frozen=True)
class FollowsTheSolver(GradientEstimator):
    """Takes a number of terms that depends on the rounds of the forward solve."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        rounds, value = f.counts.rounds, solution.state.detach()
        z, fz = recorded(f.value, value)

        def summed(g: Tensor) -> Tensor:
            total = term = g
            for _ in range(rounds // 4):
                term = products(fz, z, term)
                total = total + term
            return total

        return with_gradient_of(value, fz, summed)


@dataclass(frozen=True)
class AbsoluteTolerance(_Plain):
    """Treats a cotangent smaller than a fixed epsilon as zero."""

    def spoilt(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        return self.series(torch.where(g.norm(dim=1, keepdim=True) > 1e-12, g, 0.0), fz, z)


@dataclass(frozen=True)
class DividesByTheLength(_Plain):
    """Scales every row to unit length, including rows of length zero."""

    def spoilt(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        length = g.norm(dim=1, keepdim=True)
        solved: Tensor = self.series(g / length, fz, z) * length
        return solved


@dataclass(frozen=True)
class JudgesTheBatch(_Plain):
    """Stops when the batch as a whole has converged, though rows with small cotangents may not have."""

    def spoilt(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        total = term = g
        while float(term.norm()) > 1e-8 * float(g.norm()):
            term = products(fz, z, term)
            total = total + term
        return total


@dataclass(frozen=True)
class KeepsOneGraph(_Plain):
    """Stores the graph of the last solve globally, and every backward pass uses that one."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        value = solution.state.detach()
        _, fz = recorded(f.value, value)
        with torch.enable_grad():
            z = value.clone().requires_grad_()
            _LAST[:] = [f.value(z), z]
        return with_gradient_of(value, fz, lambda g: self.series(g, *_LAST))


_LAST: list[Tensor] = []


@dataclass(frozen=True)
class CountsTwice(GradientEstimator):
    """Counts the gradient twice if the problem depends on another solution."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        attached: Tensor = _TIGHT.attach(f, solution)
        share = 2.0 if _on_another(f.problem(solution.state.detach())) else 1.0
        if attached.requires_grad:
            attached.register_hook(lambda g: share * g)
        return attached


def _on_another(value: Tensor) -> bool:
    """Return whether the graph of a value contains the solution of another problem."""
    nodes: list[Any] = [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and "FixedPoint" in node.name():
            return True
        nodes.extend(earlier for earlier, _ in getattr(node, "next_functions", ()))
    return False


@dataclass(frozen=True)
class ServesOnce(_Plain):
    """Drops its hook after the first backward pass, so that later passes silently give the one-step gradient."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        value, passes = solution.state.detach(), [0]
        z, fz = recorded(f.value, value)

        def once(g: Tensor) -> Tensor:
            passes[0] += 1
            return self.series(g, fz, z) if passes[0] == 1 else g

        return with_gradient_of(value, fz, once)


@dataclass(frozen=True)
class WrongTwice(_Plain):
    """Lets autograd differentiate the backward pass with the solution treated as a constant."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        value = solution.state.detach()
        z, fz = recorded(f.value, value)
        path = value + (fz - fz.detach())
        if path.requires_grad:
            path.register_hook(lambda g: self.series(g, fz, z))
        return path


@dataclass(frozen=True)
class AlwaysAttached(_Plain):
    """Requires a gradient even if f depends on nothing that does."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        attached: Tensor = _TIGHT.attach(f, solution)
        return attached if attached.requires_grad else attached.requires_grad_()


@dataclass(frozen=True)
class TiesTheStart(_Plain):
    """Makes the solution depend on the start."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        start = f.problem.initial()
        attached: Tensor = _TIGHT.attach(f, solution) + 0.1 * (start - start.detach())
        return attached


@dataclass(frozen=True)
class LooksAtLeaves(GradientEstimator):
    """Solves the adjoint equation only for the first tensor of the state."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        attached: Tensor = _TIGHT.attach(f, solution)
        first = f.layout.slices[0]
        mask = torch.zeros(f.layout.size, dtype=attached.dtype)
        mask[first] = 1.0
        if attached.requires_grad:
            attached.register_hook(lambda g: g * mask)
        return attached


@dataclass(frozen=True)
class RoundsToHalf(_Plain):
    """Sums the series in half precision unless the state is in double."""

    def spoilt(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        if g.dtype == torch.float64:
            return self.series(g, fz, z)
        total = term = g
        for _ in range(200):
            term = products(fz, z, term)
            total = (total.bfloat16() + term.bfloat16()).to(g.dtype)
        return total


@dataclass(frozen=True)
class SaysItConverged(GradientEstimator):
    """Reports a solved adjoint equation without solving it."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        report, value = AdjointReport(), solution.state.detach()
        solution.extras["adjoint"] = report
        _, fz = recorded(f.value, value)

        def told(g: Tensor) -> Tensor:
            report.backwards += 1
            report.status = (Status.CONVERGED,) * len(g)
            report.relative_error, report.products = np.zeros(len(g)), np.ones(len(g), dtype=np.int64)
            return g

        return with_gradient_of(value, fz, told)


@dataclass(frozen=True)
class ReportsAhead(Implicit):
    """Fills in the report before a backward pass has run."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        attached = super().attach(f, solution)
        report = solution.extras["adjoint"]
        report.backwards, report.relative_error = 1, np.zeros(len(attached))
        return attached


@dataclass(frozen=True)
class ForgetsAnOption(OneStep):
    """Changes an option on construction, so that it cannot be rebuilt from its options."""

    terms: int = option(5, ge=1, help="number of terms")

    def check(self) -> None:
        object.__setattr__(self, "terms", self.terms + 1)


GRADIENT_MUTANTS: dict[str, tuple[GradientEstimator, ...]] = {
    "value-kept": (MovesTheValue(),),
    "closed-form": (ForgetsTheTranspose(), OneStep()),
    "differences": (ForgetsTheTranspose(), OneStep()),
    "solver-independent": (FollowsTheSolver(),),
    "tiny-cotangents": (AbsoluteTolerance(),),
    "zero-cotangents": (DividesByTheLength(),),
    "rows": (JudgesTheBatch(),),
    "two-forwards": (KeepsOneGraph(),),
    "nested-forwards": (CountsTwice(),),
    "repeated-backward": (ServesOnce(),),
    "second-derivatives": (WrongTwice(),),
    "constants": (AlwaysAttached(),),
    "start": (TiesTheStart(),),
    "structure": (LooksAtLeaves(),),
    "single-precision": (RoundsToHalf(),),
    "reported": (SaysItConverged(), ReportsAhead()),
    "options": (ForgetsAnOption(),),
}
"""The estimators that each check must fail, by the name of the check."""
