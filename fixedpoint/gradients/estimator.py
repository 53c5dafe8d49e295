"""GradientEstimator: gives a solution a backward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import Options
from fixedpoint.core.solution import Solution

__all__ = ["GradientEstimator", "with_gradient_of"]


class GradientEstimator(Options, ABC):
    """Attaches a backward pass to a solution: a frozen dataclass of options."""

    runs_forward: ClassVar[bool] = False
    """Whether the forward solve itself is to be recorded by autograd (only unrolling wants that)."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        """A state whose value is exactly ``solution.state`` and whose backward pass is the estimator's."""


def with_gradient_of(value: Float[Tensor, "B D"], path: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """``value``, bit for bit, that sends its cotangent into ``path``.

    A second backward pass through it is refused: what it would give is not the second derivative.
    """
    result: Tensor = _Substitute.apply(value, path)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result


class _Substitute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor]:
        return None, cotangent
