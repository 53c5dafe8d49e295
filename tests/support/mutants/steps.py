"""Mutants whose steps are wrong; the loop around them is sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver
from fixedpoint.core.options import option

Step = tuple[Float[Tensor, "B D"] | Evaluated, Any]


@dataclass(frozen=True)
class _Plain(StepSolver[Any]):
    """Picard iteration; the mutants derive from it."""

    def init(self, f: Evaluator, at: Evaluated) -> Any:
        return None

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.fz, None


@dataclass(frozen=True)
class StandsStill(_Plain):
    """Proposes the point that was just evaluated."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.z.clone(), None


@dataclass(frozen=True)
class Overshoots(_Plain):
    """Takes steps two and a half times as long as the residual."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.z + 2.5 * at.residual, None


@dataclass(frozen=True)
class WarmsUp(_Plain):
    """Takes a first step without checking whether one is needed."""

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        return f(f(z0).fz)


@dataclass(frozen=True)
class PeeksBehind(_Plain):
    """Evaluates the problem directly, bypassing the evaluator."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return f.problem(at.fz), None


@dataclass(frozen=True)
class EvaluatesTwice(_Plain):
    """Removes an evaluation from the counts."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        evaluated = f(at.fz)
        f.counts.evaluations -= 1
        return evaluated, None


@dataclass(frozen=True)
class ForgetsTheTry(_Plain):
    """Removes an evaluation from the counts if a Jacobian-vector product found that forward mode is missing."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        known = f.differs
        if f.remaining < 4:
            return at.fz, None
        f.product(at, at.residual)
        f.counts.evaluations -= f.running & (f.differs and not known)
        return at.fz, None


@dataclass(frozen=True)
class WritesInPlace(_Plain):
    """Starts from the caller's tensor without a copy, and updates the point in place."""

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        return f(z0)

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.z.copy_(at.fz), None


@dataclass(frozen=True)
class MixesRows(_Plain):
    """Chooses the step length from the residual of the whole batch."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        share = (at.residual * at.z).sum().abs() / (at.residual.norm() * at.z.norm())
        return at.z + (1 - 0.1 * share) * at.residual, None


@dataclass(frozen=True)
class SpreadsNaN(_Plain):
    """Masks rows by multiplying with zero, and zero times NaN is NaN."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.fz + 0.0 * at.residual.sum(), None


@dataclass(frozen=True)
class SlowsForTheWorst(_Plain):
    """Shortens the steps of all rows if the step of one row is long."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.z + at.residual * (10.0 / at.residual.abs().amax()).clamp(max=1.0), None


@dataclass(frozen=True)
class DividesByNothing(_Plain):
    """Aitken's extrapolation without a guard against differences of zero."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        if state is None:
            return at.fz, (at.z.clone(), at.residual.clone())
        last_z, last_residual = state
        slope = (at.residual - last_residual) / (at.z - last_z)
        return at.z - at.residual / slope, (at.z.clone(), at.residual.clone())


@dataclass(frozen=True)
class AbsoluteRidge(_Plain):
    """Anderson with memory 1 and an absolute ridge."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        now = (at.fz.clone(), at.residual.clone())
        if state is None:
            return at.fz, now
        change_f, change_r = now[0] - state[0], now[1] - state[1]
        square = (change_r * change_r).sum(1, keepdim=True) + 1e-4
        return at.fz - change_f * (change_r * at.residual).sum(1, keepdim=True) / square, now


@dataclass(frozen=True)
class LooksAtLeaves(_Plain):
    """Treats a state of several tensors differently from the same numbers in one tensor."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.z + at.residual * (0.9 if len(f.layout.leaves) > 1 else 1.0), None


@dataclass(frozen=True)
class AssumesContiguous(_Plain):
    """Reads the memory of the start as if it were contiguous."""

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        return f(torch.as_strided(z0, z0.shape, (z0.shape[1], 1)).clone())


@dataclass(frozen=True)
class Dithers(_Plain):
    """Adds noise without a seed."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.fz + 1e-3 * at.residual * torch.rand_like(at.fz), None


@dataclass(frozen=True)
class StepsTooCoarsely(_Plain):
    """Rounds its points to two decimals, which shows only with tight tolerances."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return (at.fz.double() * 1e2).round().div(1e2).to(at.fz.dtype), None


@dataclass(frozen=True)
class Drifts(_Plain):
    """Proposes points in a narrower dtype than that of the state."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.fz.float() if at.z.dtype == torch.float64 else at.fz.bfloat16(), None


@dataclass
class Mutable(StepSolver[Any]):
    """A dataclass that is not frozen, and so has no hash."""

    def init(self, f: Evaluator, at: Evaluated) -> Any:
        return None

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.fz, None


@dataclass(frozen=True)
class ForgetsAnOption(_Plain):
    """Changes an option on construction, so that it cannot be rebuilt from its options."""

    memory: int = option(5, ge=1, help="number of earlier steps")

    def check(self) -> None:
        object.__setattr__(self, "memory", self.memory + 1)
