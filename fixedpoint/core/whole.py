"""The check of the answer of all rows against the value of the function for all rows together.

Each row is judged at its own point, and finished rows are omitted or frozen while the others move on. That is correct
if rows are independent. If they are not, the value that a row was judged by differs from the value of the function at
the answer. Examples are a cell that normalises over the batch or attends across it, nodes of a graph that are passed as
a batch, and an input that is split by rows although it belongs to all of them. A gradient estimator evaluates the
function at the answer, all rows together, so that this check costs no evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated, Evaluator
from fixedpoint.core.problem import HasMeasure
from fixedpoint.core.reduce import block_norms
from fixedpoint.core.solution import Solution
from fixedpoint.core.status import Status
from fixedpoint.core.statuses import Statuses
from fixedpoint.core.termination import Judge, Termination
from fixedpoint.core.transfer import to_device, to_host
from fixedpoint.core.yardstick import Yardstick

__all__ = ["AssumesIndependentRows", "checked_jointly", "same_rows"]


class AssumesIndependentRows(ABC):
    """A problem that takes rows on the assumption that they are independent, without a proof of it."""

    @property
    @abstractmethod
    def assumes_independent_rows(self) -> bool:
        """Whether rows have been taken on that assumption, so that the answer must be checked."""


def checked_jointly(
    f: Evaluator, solution: Solution, termination: Termination, value: Float[Tensor, "B D"]
) -> Solution:
    """Return the solution with status ``MIXED`` for converged rows that are not converged according to ``value``.

    These rows get value, error and scale from ``value``. If the value of any row differs, beyond rounding, from the one
    it was judged by, the solution has ``extras["apart"]``, shape ``(B,)``, bool: it marks the ``MIXED`` rows, and the
    rows with a different value that had not converged.

    Parameters
    ----------
    f
        The evaluator of the solve. It is not called.
    solution
        The solution, whose state is not attached to a graph.
    termination
        The rule that its rows were judged by.
    value
        Shape ``(B, D)``: the function's value at ``solution.state``, of all rows together.
    """
    # A single row cannot mix with others; a problem with its own measure keeps its rows apart itself.
    if f.layout.rows == 1 or isinstance(f.problem, HasMeasure):
        return solution
    with torch.no_grad():
        z, value = solution.state.detach(), value.detach()
        judged = solution.fstate.detach()
        apart = ~same_rows(value, judged) & judged.isfinite().all(dim=1)
        if not bool(apart.any()):
            return solution
        at, _ = f.read(f.judged(z, value))
        claimed = to_device(solution.converged, z.device)
        near = to_device(solution.converged & _within(at, solution, termination, f.yardstick), z.device)
        apart = apart & ~near
        wrong = apart & claimed
        column = wrong.unsqueeze(1)
        return replace(
            solution,
            fstate=torch.where(column, value, solution.fstate),
            error=torch.where(column, at.error, solution.error),
            scale=torch.where(column, at.scale, solution.scale),
            status=Statuses(solution.status).where(wrong.cpu().numpy(), Status.MIXED),
            extras={**solution.extras, "apart": apart.cpu().numpy()},
        )


def same_rows(value: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> Bool[Tensor, " B"]:
    """Whether rows are equal up to rounding, shape ``(B,)``; under autocast, up to the rounding of its dtype."""
    moved, size = block_norms(value - other, 1, "l2"), block_norms(value, 1, "l2")
    return (moved <= _rounding(value) * size).all(dim=1)


def _within(at: Evaluated, solution: Solution, termination: Termination, yardstick: Yardstick) -> NDArray[np.bool_]:
    """Whether the rows are within the tolerance at a point where all were evaluated together."""
    assert at.numbers is not None  # it was read
    if termination.relative_to == "start":  # the first error is no longer known, so compare with the final one
        fallen: NDArray[np.bool_] = np.all(at.numbers.error <= 2 * to_host(solution.error)[0], axis=1)
        return fallen
    within = Judge(termination, at.z.dtype, yardstick=yardstick).within(at.numbers)
    return np.broadcast_to(within, len(at.z))


def _rounding(value: Tensor) -> float:
    """Return the relative difference that is allowed between a row computed alone and in a batch."""
    device = value.device.type
    rounding = 64.0 * torch.finfo(value.dtype).eps
    if not torch.is_autocast_enabled(device):
        return rounding
    return max(rounding, 16.0 * torch.finfo(torch.get_autocast_dtype(device)).eps)
