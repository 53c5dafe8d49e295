"""Converts a solution to the ``SolverStat`` of torchdeq."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.solution import Solution
from fixedpoint_torchdeq.library import torchdeq

__all__ = ["solver_stat", "unsolved"]

_BEFORE = 1e8  # the value in torchdeq's traces before the first evaluation


def solver_stat(solution: Solution, limit: int, latest: bool) -> Any:
    """The statistics of ``solution``.

    Parameters
    ----------
    solution
        The solution.
    limit
        The limit on evaluations, which determines the length of the traces.
    latest
        Whether the point of the solution is the latest one rather than the best one.
    """
    error = solution.error.amax(dim=1).cpu().numpy()
    scale = solution.scale.amax(dim=1).cpu().numpy()
    relative = np.divide(error, scale, out=np.where(error > 0, np.inf, 0.0), where=scale > 0)
    dtype = torch.promote_types(solution.state.dtype, torch.float32)

    def tensor(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(solution.state.device, dtype)

    stat = torchdeq("solver.stat").SolverStat(
        abs_lowest=tensor(error),
        rel_lowest=tensor(relative),
        abs_trace=tensor(_trace(solution.trace.error, error, limit)),
        rel_trace=tensor(_trace(solution.trace.relative, relative, limit)),
        nstep=tensor(_steps(solution, latest).astype(np.float64)),
    )
    stat.status, stat.message, stat.counts = solution.status, solution.message, solution.counts
    return stat


def unsolved(rows: Float[Tensor, "B D"]) -> Any:
    """The statistics if nothing was evaluated, as torchdeq's own iteration returns them."""
    nothing = torch.full((rows.shape[0],), _BEFORE, device=rows.device)
    column = nothing.unsqueeze(1)
    stat = torchdeq("solver.stat").SolverStat
    return stat(
        abs_lowest=nothing,
        rel_lowest=nothing.clone(),
        abs_trace=column,
        rel_trace=column.clone(),
        nstep=torch.zeros_like(nothing),
    )


def _trace(rounds: NDArray[np.float64], final: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """A trace of shape ``(rounds, B)`` in torchdeq's shape ``(B, limit + 1)``, filled up with the final values."""
    padded = np.full((len(final), limit + 1), _BEFORE)
    padded[:, 1:] = final[:, np.newaxis]
    made = rounds.T[:, :limit]
    part = padded[:, 1 : 1 + made.shape[1]]
    np.copyto(part, made, where=~np.isnan(made))
    return padded


def _steps(solution: Solution, latest: bool) -> NDArray[np.int64]:
    """The evaluation at which the point of every row was found."""
    if latest:
        return solution.rounds
    best = np.where(np.isfinite(solution.trace.relative), solution.trace.error, np.inf).argmin(axis=0) + 1
    return np.where(solution.converged, solution.rounds, best)
