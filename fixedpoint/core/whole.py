"""The answer of all rows held against the function's value of all of them together.

Rows are judged one by one, each when its turn comes, and those that are done are left out or frozen while others move
on. That is right where rows are independent. Where they are not, what a row was judged by is not what the function says
of the answer: a cell that normalises over the batch or attends across it, nodes of a graph that were taken for a batch,
an input taken row by row that belongs to every row. A gradient estimator evaluates the function at the answer, all rows
together, and that shows it for nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.problem import HasMeasure
from fixedpoint.core.reduce import block_norms
from fixedpoint.core.solution import Solution
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Judge, Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.core.yardstick import Yardstick

__all__ = ["Unproven", "held_against_the_whole", "same_rows"]


class Unproven(ABC):
    """A problem that knows whether its rows have been evaluated apart from one another on trust."""

    @property
    @abstractmethod
    def unproven(self) -> bool:
        """Whether they have been."""


def held_against_the_whole(
    f: Evaluator, solution: Solution, termination: Termination, value: Float[Tensor, "B D"]
) -> Solution:
    """The solution, but for rows that it calls converged though ``value`` says otherwise: these are ``MIXED``.

    They get value, error and scale of the whole. ``extras["apart"]``, shape ``(B,)``, there only where there are such
    rows, are these and the rows that did not converge whose value is not what they were judged by, beyond rounding.

    Parameters
    ----------
    f
        The evaluator of the solve; it is not called.
    solution
        The point, not attached to any graph.
    termination
        What its rows were judged by.
    value
        Shape ``(B, D)``: the function's value of all rows at ``solution.state``.
    """
    if f.layout.rows == 1 or isinstance(f.problem, HasMeasure):  # one row mixes with none; a chain knows its own rows
        return solution
    with torch.no_grad():
        z, value = solution.state.detach(), value.detach()
        judged = solution.fstate.detach()
        apart = ~same_rows(value, judged) & judged.isfinite().all(dim=1)
        if not bool(apart.any()):
            return solution
        at = f.judged(z, value)
        claimed = to_device(solution.converged, z.device)
        apart = apart & ~(claimed & _within(at, solution, termination, f.yardstick))
        wrong = apart & claimed
        column = wrong.unsqueeze(1)
        mixed = wrong.tolist()
        return replace(
            solution,
            fstate=torch.where(column, value, solution.fstate),
            error=torch.where(column, at.error, solution.error),
            scale=torch.where(column, at.scale, solution.scale),
            status=tuple(Status.MIXED if row else status for row, status in zip(mixed, solution.status, strict=True)),
            extras={**solution.extras, "apart": apart.cpu().numpy()},
        )


def same_rows(value: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> Bool[Tensor, " B"]:
    """Whether rows are the same but for rounding, of the dtype that autocast computes in where it is on."""
    moved, size = block_norms(value - other, 1, "l2"), block_norms(value, 1, "l2")
    return (moved <= _rounding(value) * size).all(dim=1)


def _within(at: Evaluated, solution: Solution, termination: Termination, yardstick: Yardstick) -> Bool[Tensor, " B"]:
    """Whether the rows are within the tolerance at a point of the whole."""
    if termination.relative_to == "start":  # the first error is not there any more; what the solve ended at is
        return (at.error <= 2 * solution.error).all(dim=1)
    return Judge(termination, at.z.dtype, yardstick=yardstick).within(at)


def _rounding(value: Tensor) -> float:
    """By how much of its size a row may differ for being computed among others."""
    device = value.device.type
    rounding = 64.0 * torch.finfo(value.dtype).eps
    if not torch.is_autocast_enabled(device):
        return rounding
    return max(rounding, 16.0 * torch.finfo(torch.get_autocast_dtype(device)).eps)
