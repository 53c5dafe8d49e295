"""Mutants that go wrong within a step; the loop around them is sound."""

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
    """Picard iteration, for the mutants to spoil."""

    def init(self, f: Evaluator, at: Evaluated) -> Any:
        return None

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.fz, None


@dataclass(frozen=True)
class StandsStill(_Plain):
    """Proposes the point it is at."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.z.clone(), None


@dataclass(frozen=True)
class Overshoots(_Plain):
    """Goes two and a half times as far as it should."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.z + 2.5 * at.residual, None


@dataclass(frozen=True)
class WarmsUp(_Plain):
    """Takes a first step without looking whether one is needed."""

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        return f(f(z0).fz)


@dataclass(frozen=True)
class PeeksBehind(_Plain):
    """Evaluates the problem behind the evaluator's back."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return f.problem(at.fz), None


@dataclass(frozen=True)
class EvaluatesTwice(_Plain):
    """Takes an evaluation out of the counts again."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        evaluated = f(at.fz)
        f.counts.evaluations -= 1
        return evaluated, None


@dataclass(frozen=True)
class ForgetsTheTry(_Plain):
    """Takes a Jacobian-vector product, and an evaluation out of the counts if that has found forward mode missing."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        known = f.differs
        if f.remaining < 4:
            return at.fz, None
        f.product(at, at.residual)
        f.counts.evaluations -= f.running & (f.differs and not known)
        return at.fz, None


@dataclass(frozen=True)
class WritesInPlace(_Plain):
    """Begins with the caller's start itself, and updates the point in place."""

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        return f(z0)

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.z.copy_(at.fz), None


@dataclass(frozen=True)
class MixesRows(_Plain):
    """Chooses the length of the step by the residual of the whole batch."""

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
    """Shortens every row's step when one row's is long."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.z + at.residual * (10.0 / at.residual.abs().amax()).clamp(max=1.0), None


@dataclass(frozen=True)
class DividesByNothing(_Plain):
    """Aitken's extrapolation without a guard for differences that vanish."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        if state is None:
            return at.fz, (at.z.clone(), at.residual.clone())
        last_z, last_residual = state
        slope = (at.residual - last_residual) / (at.z - last_z)
        return at.z - at.residual / slope, (at.z.clone(), at.residual.clone())


@dataclass(frozen=True)
class AbsoluteRidge(_Plain):
    """Anderson with memory 1 and a ridge that knows no scale."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        now = (at.fz.clone(), at.residual.clone())
        if state is None:
            return at.fz, now
        change_f, change_r = now[0] - state[0], now[1] - state[1]
        square = (change_r * change_r).sum(1, keepdim=True) + 1e-4
        return at.fz - change_f * (change_r * at.residual).sum(1, keepdim=True) / square, now


@dataclass(frozen=True)
class LooksAtLeaves(_Plain):
    """Treats a state of several tensors otherwise than the same numbers in one."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.z + at.residual * (0.9 if len(f.layout.leaves) > 1 else 1.0), None


@dataclass(frozen=True)
class AssumesContiguous(_Plain):
    """Reads the start's memory as if it lay in order."""

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        return f(torch.as_strided(z0, z0.shape, (z0.shape[1], 1)).clone())


@dataclass(frozen=True)
class Dithers(_Plain):
    """Adds noise without a seed."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.fz + 1e-3 * at.residual * torch.rand_like(at.fz), None


@dataclass(frozen=True)
class StepsTooCoarsely(_Plain):
    """Rounds its points to three digits, a habit that only tight tolerances show."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return (at.fz.double() * 1e2).round().div(1e2).to(at.fz.dtype), None


@dataclass(frozen=True)
class Drifts(_Plain):
    """Works in a narrower format to save time, and forgets to come back."""

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.fz.float() if at.z.dtype == torch.float64 else at.fz.bfloat16(), None


@dataclass
class Mutable(StepSolver[Any]):
    """Options that can be changed afterwards, and so no hash."""

    def init(self, f: Evaluator, at: Evaluated) -> Any:
        return None

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> Step:
        return at.fz, None


@dataclass(frozen=True)
class ForgetsAnOption(_Plain):
    """Changes an option behind the caller's back, so that its options do not rebuild it."""

    memory: int = option(5, ge=1, help="number of earlier steps")

    def check(self) -> None:
        object.__setattr__(self, "memory", self.memory + 1)
