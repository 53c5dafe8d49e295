"""Step solvers that record points at given numbers of evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.loop import StepSolver

__all__ = ["Sampled", "SampledToTheEnd"]


@dataclass(frozen=True)
class Sampled(StepSolver[Any]):
    """The step solver ``inner``, which also records the best points so far.

    Attributes
    ----------
    inner
        The step solver.
    wanted
        Numbers of evaluations after which a point is recorded, in ascending order.
    points
        The recorded points; fewer than ``wanted`` if the solve ends earlier.
    """

    inner: StepSolver[Any]
    wanted: tuple[int, ...]
    points: list[Tensor]

    def begin(self, f: Evaluator, z0: Float[Tensor, "B D"]) -> Evaluated:
        return self.inner.begin(f, z0)

    def init(self, f: Evaluator, at: Evaluated) -> Any:
        return self.inner.init(f, at)

    def step(self, f: Evaluator, at: Evaluated, state: Any) -> tuple[Float[Tensor, "B D"] | Evaluated, Any]:
        while len(self.points) < len(self.wanted) and self.wanted[len(self.points)] <= f.counts.rounds:
            self.points.append(self._point(f, at).clone())
        return self.inner.step(f, at, state)

    def reset(self, state: Any, rows: Bool[Tensor, " B"]) -> Any:
        return self.inner.reset(state, rows)

    def extras(self, state: Any) -> dict[str, Any]:
        return self.inner.extras(state)

    def _point(self, f: Evaluator, at: Evaluated) -> Float[Tensor, "B D"]:
        return f.best.z


@dataclass(frozen=True)
class SampledToTheEnd(Sampled):
    """The same, but it records the latest points instead of the best ones, and does not stop early."""

    has_fixed_length = True

    def _point(self, f: Evaluator, at: Evaluated) -> Float[Tensor, "B D"]:
        return at.z
