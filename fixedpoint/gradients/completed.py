r"""Completes unrolled gradients: gives rows whose values are solved the derivative of the fixed point.

Backpropagation through ``z_{k+1} = f(z_k, theta)`` is an iteration for the derivative, ``D_{k+1} = J D_k + df/dtheta``
from ``D_0 = 0``. It tends to the derivative of the fixed point at the same rate as the values (Gilbert 1992, "Automatic
differentiation and iterative processes"), but it always begins at zero. If the start was solved already, or was wrong
only in directions that contract fast, the values are solved after a round or two, when the derivative has hardly
changed from zero.

Therefore the derivative of a solved row is computed at the solution, from the cotangent that arrives: by
``u = J^T u + g`` until it is as exact as the solve (Christianson 1994, "Reverse accumulation and attractive fixed
points", whose second phase this is). That recurrence is the adjoint equation, so it is solved as ``Implicit`` solves
it. This is faster than the recurrence, and also works where the recurrence diverges. The recorded iterations of a
solved row then contribute nothing, and are released.

A row that is not solved gets the derivative of the computation as it was carried out: there is no fixed point to
differentiate.
"""

from __future__ import annotations

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
from fixedpoint.core.warning import warn_caller
from fixedpoint.gradients.adjoint import failed_rows
from fixedpoint.gradients.implicit import Implicit

__all__ = ["UnrolledWarning", "completed"]


class UnrolledWarning(UserWarning):
    """A row ended unsolved at its start, so backpropagation through its rounds gives a gradient of zero."""


def completed(f: Evaluator, solution: Solution, path: Callable[[], Float[Tensor, "B D"]]) -> Float[Tensor, "B D"]:
    """Return ``solution.state`` with the derivative of the fixed point in solved rows, that of ``path()`` elsewhere.

    This takes one more evaluation, which is counted. ``solution.extras["adjoint"]`` says how the adjoint equation of
    the solved rows was solved. Solved rows contribute zero to the gradient of the start.

    Parameters
    ----------
    f
        The evaluator of the solve.
    solution
        The solution; ``solution.state`` has shape ``(B, D)``.
    path
        Function that returns the state, shape ``(B, D)``, connected to the recorded iterations. It is not called if all
        rows are solved.
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
    # Without this, torch.autograd.grad by the start would raise, since the solution does not use it.
    if start.requires_grad:
        solved = _ZeroGradientOfStart.apply(solved, start)  # type: ignore[no-untyped-call]  # as torch leaves it
    return solved


def _tell_starts(solution: Solution, start: Float[Tensor, "B D"], unsolved: NDArray[Any]) -> None:
    """Warn about unsolved rows whose answer is their start: it depends on no parameter."""
    at_start = (solution.state.detach() == start.detach()).all(dim=1).cpu().numpy() & unsolved
    if not at_start.any():
        return
    labels = Counter(status.label for status, here in zip(solution.status, at_start, strict=True) if here)
    listed = ", ".join(f"{count} {label}" for label, count in sorted(labels.items()))
    warn_caller(
        UnrolledWarning(
            f"{int(at_start.sum())} of {len(at_start)} rows ended unsolved where they had begun ({listed}): no round "
            "led there, so their unrolled gradient is zero. Give them more rounds or another start, or take "
            "gradient='implicit'"
        )
    )


class _ZeroGradientOfStart(torch.autograd.Function):
    """A value that autograd connects to a start on which it does not depend: the gradient of the start is zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, start: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        return cotangent, torch.zeros_like(cotangent)

    @staticmethod
    def jvp(ctx: Any, moved: Tensor | None, start: Tensor | None) -> Tensor | None:
        return moved
