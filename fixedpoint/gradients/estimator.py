"""GradientEstimator: gives a solution a backward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.options import Options
from fixedpoint.core.problem import Problem
from fixedpoint.core.solution import Solution

__all__ = ["GradientEstimator", "refuse_derivatives", "with_gradient_of"]


class GradientEstimator(Options, ABC):
    """Attaches a backward pass to a solution: a frozen dataclass of options."""

    runs_forward: ClassVar[bool] = False
    """Whether the forward solve itself is to be recorded by autograd (only unrolling requires that)."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What it requires of the solver that finds the solution (see ``Solver.provides``); it is asked for before."""

    @property
    def known_faults(self) -> Mapping[str, str]:
        """Checks of ``fixedpoint.testing.check_gradient`` that it fails by its nature, each with the fault."""
        return {}

    def check_problem(self, problem: Problem) -> None:  # most estimators take any problem
        """Refuse a problem that it cannot differentiate, before anything is solved.

        Raises
        ------
        AbilityError
            Naming what the problem lacks.
        """

    @abstractmethod
    def attach(self, f: Evaluator, solution: Solution) -> Float[Tensor, "B D"]:
        """A state whose value is exactly ``solution.state`` and whose backward pass is the estimator's."""


def with_gradient_of(
    value: Float[Tensor, "B D"],
    path: Float[Tensor, "B D"],
    through: Callable[[Float[Tensor, "B D"]], Float[Tensor, "B D"]] | None = None,
) -> Float[Tensor, "B D"]:
    """``value``, bit for bit, that sends its cotangent into ``path``.

    A second backward pass through it is refused: what it would give is not the second derivative. So is forward mode.

    Parameters
    ----------
    value, path
        Shape ``(B, D)``.
    through
        What is made of the cotangent, shape ``(B, D)``, on its way; nothing by default.
    """
    result: Tensor = _Substitute.apply(value, path, through)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result


def refuse_derivatives(value: Tensor, *of: Tensor) -> Tensor:
    """``value``, tied to all that ``of`` depends on, so that a backward pass through it is refused."""
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in of):
        return value
    result: Tensor = _Refuse.apply(value, *of)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result


class _Substitute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, path: Tensor, through: Callable[[Tensor], Tensor] | None) -> Tensor:
        ctx.save_for_backward(path)
        ctx.through = through
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor, None]:
        (path,) = ctx.saved_tensors
        with torch.no_grad():
            sent = cotangent if ctx.through is None else ctx.through(cotangent.detach())
        return None, refuse_derivatives(sent, cotangent, path), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise RuntimeError(
            "this gradient estimator has no forward mode; gradient='implicit' and gradient='unrolled' have"
        )


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *of: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> None:
        raise RuntimeError(
            "this gradient estimator gives first derivatives only; gradient='implicit' and gradient='unrolled' give "
            "higher ones"
        )
