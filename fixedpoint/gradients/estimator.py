"""GradientEstimator: the base class of methods that give a solution a backward pass."""

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
    """A method that attaches a backward pass to a solution: a frozen dataclass of options."""

    runs_forward: ClassVar[bool] = False
    """Whether autograd must record the forward solve itself; only unrolling requires this."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What it requires of the solver of the forward solve, see ``Solver.provides``; compared before the solve."""

    @property
    def known_faults(self) -> Mapping[str, str]:
        """Checks of ``fixedpoint.testing.check_gradient`` that it cannot pass by its nature, each with the reason."""
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
        """Return a state equal to ``solution.state`` bit for bit, with the backward pass of this estimator.

        Parameters
        ----------
        f
            The evaluator of the forward solve. Evaluations made here through it are counted.
        solution
            The solution; ``solution.state`` has shape ``(B, D)``. A report may be stored in ``solution.extras``.
        """


def with_gradient_of(
    value: Float[Tensor, "B D"],
    path: Float[Tensor, "B D"],
    through: Callable[[Float[Tensor, "B D"]], Float[Tensor, "B D"]] | None = None,
) -> Float[Tensor, "B D"]:
    """Return ``value``, bit for bit, with a backward pass that sends its cotangent into ``path``.

    Second derivatives raise ``RuntimeError``, since this construction would not give the right ones, and so does
    forward mode.

    Parameters
    ----------
    value
        Shape ``(B, D)``: the value to return.
    path
        Shape ``(B, D)``: the differentiable tensor that receives the cotangent.
    through
        Function applied to the cotangent, shape ``(B, D)``, before it is sent; by default none.
    """
    result: Tensor = _Substitute.apply(value, path, through)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result


def refuse_derivatives(value: Tensor, *of: Tensor) -> Tensor:
    """Return ``value`` as if it depended on the tensors ``of``; a backward pass through it raises ``RuntimeError``."""
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
        # Not recorded, whatever the backward pass was asked for: differentiating it again raises instead.
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
