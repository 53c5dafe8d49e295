r"""What unrolling leaves undone: the derivative of rows whose values are solved before their derivatives are.

Backpropagation through ``z_{k+1} = f(z_k, theta)`` is an iteration for the derivative ``D_{k+1} = J D_k + df/dtheta``
from ``D_0 = 0``; it tends to that of the fixed point at the same rate as the values (Gilbert 1992, "Automatic
differentiation and iterative processes"), but it begins with the solve. Where the start was solved already, or where it
was wrong in quick directions only, the values are done after a round or two, and the derivative has hardly begun. So
the derivative of a solved row is gone on with by itself, at the solution and with the cotangent that arrives:
``u = J^T u + g`` until it is as exact as the solve (Christianson 1994, "Reverse accumulation and attractive fixed
points", whose second phase this is). That recurrence is the adjoint equation, so it is solved as ``Implicit`` solves
it: quicker than by the recurrence, and where that grows. What was recorded on the way to a solved row then adds
nothing, and is let go.

A row that is not solved has the derivative of what was computed: there is no fixed point to be differentiated.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluator
from fixedpoint.core.solution import Solution
from fixedpoint.core.transfer import to_device
from fixedpoint.gradients.adjoint import failed_rows
from fixedpoint.gradients.implicit import Implicit

__all__ = ["UnrolledWarning", "completed"]


class UnrolledWarning(UserWarning):
    """A row ended, unsolved, where it had begun: backpropagation through its rounds gives nothing."""


def completed(f: Evaluator, solution: Solution, path: Callable[[], Float[Tensor, "B D"]]) -> Float[Tensor, "B D"]:
    """``solution.state`` with the derivative of the fixed point in rows that are solved, else that of ``path()``.

    One more evaluation, which is counted; how the adjoint equation of the solved rows was solved is in
    ``solution.extras["adjoint"]``. A start that requires a gradient has zero from the rows that are solved.

    Parameters
    ----------
    f
        The evaluator of the solve.
    solution
        Shape ``(B, D)``.
    path
        Makes the state, shape ``(B, D)``, as it was computed; not called where all rows are solved.
    """
    unsolved = failed_rows(solution)
    start = f.problem.initial()
    if unsolved.any():
        _tell_starts(solution, start, unsolved)
    if unsolved.all():
        return path()
    solved = Implicit().attach(f, solution)
    if unsolved.any():
        return torch.where(to_device(unsolved, solved.device).unsqueeze(1), path(), solved)
    if start.requires_grad:
        solved = _Apart.apply(solved, start)  # type: ignore[no-untyped-call]  # as torch leaves it
    return solved


def _tell_starts(solution: Solution, start: Float[Tensor, "B D"], unsolved: NDArray[Any]) -> None:
    """Warn of rows that failed without a step: what they depend on is their start alone."""
    at_start = (solution.state.detach() == start.detach()).all(dim=1).cpu().numpy() & unsolved
    if not at_start.any():
        return
    labels = Counter(status.label for status, here in zip(solution.status, at_start, strict=True) if here)
    listed = ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
    warnings.warn(
        UnrolledWarning(
            f"{int(at_start.sum())} of {len(at_start)} rows ended unsolved where they had begun ({listed}): no round "
            "led there, so their unrolled gradient is zero. Give them more rounds or another start, or take "
            "gradient='implicit'"
        ),
        stacklevel=4,
    )


class _Apart(torch.autograd.Function):
    """A value that does not depend on a start, but is known to autograd as if it did: it has the gradient zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, start: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        return cotangent, torch.zeros_like(cotangent)

    @staticmethod
    def jvp(ctx: Any, moved: Tensor | None, start: Tensor | None) -> Tensor | None:
        return moved
