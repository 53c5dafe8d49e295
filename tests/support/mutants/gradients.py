"""Mutants of gradient estimators: for every check one that is broken in just the way that the check is there to catch.

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
    """The implicit gradient by two hundred terms of the Neumann series, for the mutants to spoil."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        value = solution.state.detach()
        z, fz = recorded(f.value, value)
        return with_gradient_of(value, fz, lambda g: self.spoilt(g, fz, z))

    def spoilt(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        """What it makes of the cotangent."""
        return self.series(g, fz, z)

    def series(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        """``(I - J^T)^{-1} g``."""
        total = term = g
        for _ in range(200):
            term = products(fz, z, term)
            total = total + term
        return total


@dataclass(frozen=True)
class MovesTheValue(GradientEstimator):
    """Hands on f(z), of which it has the graph, in place of z."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        return f.value(solution.state.detach())


@dataclass(frozen=True)
class ForgetsTheTranspose(GradientEstimator):
    """Solves with J in place of its transpose, which on symmetric maps nobody notices."""

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
    """As many terms as the forward solve took rounds."""

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
    """Takes a cotangent for zero that is smaller than some epsilon."""

    def spoilt(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        return self.series(torch.where(g.norm(dim=1, keepdim=True) > 1e-12, g, 0.0), fz, z)


@dataclass(frozen=True)
class DividesByTheLength(_Plain):
    """Scales every row to unit length, the rows of length zero included."""

    def spoilt(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        length = g.norm(dim=1, keepdim=True)
        solved: Tensor = self.series(g / length, fz, z) * length
        return solved


@dataclass(frozen=True)
class JudgesTheBatch(_Plain):
    """Stops when the batch as a whole has converged: rows of small cotangents not at all."""

    def spoilt(self, g: Tensor, fz: Tensor, z: Tensor) -> Tensor:
        total = term = g
        while float(term.norm()) > 1e-8 * float(g.norm()):
            term = products(fz, z, term)
            total = total + term
        return total


@dataclass(frozen=True)
class KeepsOneGraph(_Plain):
    """Keeps the graph of the last solve in one place, for every backward pass to find."""

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
    """Takes itself for the first to solve an adjoint equation: what another solution hands on is counted twice."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        attached: Tensor = _TIGHT.attach(f, solution)
        share = 2.0 if _on_another(f.problem(solution.state.detach())) else 1.0
        if attached.requires_grad:
            attached.register_hook(lambda g: share * g)
        return attached


def _on_another(value: Tensor) -> bool:
    """Whether a solution takes part in a value."""
    nodes: list[Any] = [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and "FixedPoint" in node.name():
            return True
        nodes.extend(earlier for earlier, _ in getattr(node, "next_functions", ()))
    return False


@dataclass(frozen=True)
class ServesOnce(_Plain):
    """Gives up its hook after the first backward pass: the second has the one-step gradient, in silence."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        value, passes = solution.state.detach(), [0]
        z, fz = recorded(f.value, value)

        def once(g: Tensor) -> Tensor:
            passes[0] += 1
            return self.series(g, fz, z) if passes[0] == 1 else g

        return with_gradient_of(value, fz, once)


@dataclass(frozen=True)
class WrongTwice(_Plain):
    """Lets autograd differentiate the backward pass, in which the solution is a constant."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        value = solution.state.detach()
        z, fz = recorded(f.value, value)
        path = value + (fz - fz.detach())
        if path.requires_grad:
            path.register_hook(lambda g: self.series(g, fz, z))
        return path


@dataclass(frozen=True)
class AlwaysAttached(_Plain):
    """Requires a gradient whatever f depends on."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        attached: Tensor = _TIGHT.attach(f, solution)
        return attached if attached.requires_grad else attached.requires_grad_()


@dataclass(frozen=True)
class TiesTheStart(_Plain):
    """Takes the solution for something that depends on the start."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        start = f.problem.initial()
        attached: Tensor = _TIGHT.attach(f, solution) + 0.1 * (start - start.detach())
        return attached


@dataclass(frozen=True)
class LooksAtLeaves(GradientEstimator):
    """Solves the adjoint equation of the first tensor of the state alone."""

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
    """Sums the series in half precision where the state is not in double."""

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
    """Reports a solved adjoint equation, whatever the cotangent became."""

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
    """Fills in the report before anything has run."""

    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        attached = super().attach(f, solution)
        report = solution.extras["adjoint"]
        report.backwards, report.relative_error = 1, np.zeros(len(attached))
        return attached


@dataclass(frozen=True)
class ForgetsAnOption(OneStep):
    """Changes an option behind the caller's back, so that its options do not rebuild it."""

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
"""Name of a check to estimators that it must fail."""
