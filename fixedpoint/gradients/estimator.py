"""GradientEstimator: gives a solution a backward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

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
        ctx.save_for_backward(path)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor]:
        if torch.is_grad_enabled():  # autograd is recording a graph for second derivatives
            cotangent = _Refuse.apply(cotangent, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        return None, cotangent


class _Refuse(torch.autograd.Function):
    """The cotangent, tied to all that ``path`` depends on, so that no second backward pass can go around it."""

    @staticmethod
    def forward(ctx: Any, cotangent: Tensor, path: Tensor) -> Tensor:
        return cotangent.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, None]:
        raise RuntimeError(
            "this gradient estimator gives first derivatives only; gradient='unrolled' gives higher ones"
        )
