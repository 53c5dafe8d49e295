r"""Solves an adjoint equation as the linear system that it is, ``(I - K) u = g``, by GMRES from ``u = 0``.

A solver of fixed points evaluates ``K u + g`` where it begins and where it ends. Neither is needed here: the residual
at zero is ``g``, and GMRES knows its residual by a recurrence. Products are as many as the Krylov space has dimensions,
and no others. Where the rounding of the products may have changed the residual, it is computed from ``u`` once more,
and the row goes on if it is not within the tolerance. The error of a row that ends unsolved is always computed from
``u``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.reduce import row_norms
from fixedpoint.core.status import Status
from fixedpoint.core.termination import Termination
from fixedpoint.core.transfer import to_device
from fixedpoint.gradients.recorded import Map
from fixedpoint.gradients.recordings import Recordings
from fixedpoint.solvers.arnoldi import rows_last
from fixedpoint.solvers.gmres import GMRES
from fixedpoint.solvers.krylov import Krylov
from fixedpoint.solvers.linear import NarrowingProduct, SolutionTolerance
from fixedpoint.solvers.series import Summed, summed

__all__ = ["DirectSolution", "is_direct", "solved_directly"]

# Fraction of the tolerance that GMRES is given, since the error is compared with the size of K u + g, not of u.
_MARGIN = 0.9
# The smallest tolerance, in units of rounding.
_ROUNDINGS = 64.0
# Fewer rounds than this leave no room for a product beside the evaluation of what is unsolved.
_FEWEST = 3
# The limit on rounds where the rule sets none, as that of a step solver.
_ROUNDS = 1000
# Rows are recorded again, without those that are done, for this many products or more. To record them takes an
# evaluation, and their problem has to be made.
_WORTH = 3.0
# Products that are expected of a row that the series has left.
_MANY = 10.0
# Largest number of products of the series, where rows go on that were expected to need fewer.
_SUMMED = 20


@dataclass(frozen=True)
class DirectSolution:
    """The solution of an adjoint equation, with everything but ``u`` on the host.

    Attributes
    ----------
    u
        Shape ``(B, D)``.
    status
        Shape ``(B,)``, int8: a :class:`.Status` for every row.
    rounds
        Number of products in sequence.
    products
        Shape ``(B,)``, int64: products of each row, and the evaluations that recorded it again.
    relative_error
        Shape ``(B,)``, float64: ``||K u + g - u||`` relative to ``||K u + g||``; relative to ``||u||`` for rows that
        are solved, from the recurrence.
    method
        ``"series"``, ``"gmres"`` or ``"series, gmres"``: what solved the rows.
    """

    u: Float[Tensor, "B D"]
    status: NDArray[np.int8]
    rounds: int
    products: NDArray[np.int64]
    relative_error: NDArray[np.float64]
    method: str


def is_direct(solver: Krylov, rule: Termination, dtype: torch.dtype) -> bool:
    """Whether :func:`solved_directly` has this solver and this rule: one error per row, relative to ``u``.

    A tolerance that is near to the rounding of the dtype is left to the loop of the solver, which evaluates ``K u + g``
    at every point.
    """
    return (
        solver.method in ("auto", "gmres")
        and rule.rtol >= _ROUNDINGS * torch.finfo(dtype).eps
        and rule.norm in ("l2", "rms")
        and rule.per == "row"
        and rule.relative_to == "state"
        and rule.atol == 0.0
        and (rule.max_rounds is None or rule.max_rounds >= _FEWEST)
    )


def solved_directly(
    linear: Map,
    g: Float[Tensor, "B D"],
    solver: Krylov,
    rule: Termination,
    record: Callable[[Tensor], Map | None] | None = None,
) -> DirectSolution:
    """Solve ``u = K u + g`` row by row.

    Parameters
    ----------
    linear
        Function that returns ``K v`` for ``v`` of shape ``(B, D)``.
    g
        Shape ``(B, D)``: the cotangent, of any size.
    solver, rule
        As :func:`is_direct` has them.
    record
        Function of row indices, shape ``(k,)``, int64, that records these rows by one evaluation and returns their
        ``K``; None if these rows cannot be evaluated without the others.
    """
    noise, limit = torch.finfo(g.dtype).eps, (rule.max_rounds or _ROUNDS) - 1
    counts, recordings = np.zeros(len(g), dtype=np.int64), Recordings(linear, len(g), record)
    product = _Products(linear, np.arange(len(g)), counts, recordings)
    size = row_norms(g)
    size = torch.where((size > 0) & size.isfinite(), size, 1.0).unsqueeze(1)
    unit = (g / size).to(g.dtype)  # in double precision, so that tiny cotangents neither vanish nor count as solved
    series = None
    if solver.method == "auto":
        series = summed(product, unit, _MARGIN * rule.rtol, noise, min(limit, _SUMMED))
    found = _of_series(series) if series is not None and series.solved.all() else None
    if found is None:
        found = _by_gmres(unit, product, series, GMRES(solver.memory), _MARGIN * rule.rtol, noise, limit)
    u, met, relative, rounds = found.u, found.met, found.relative, found.rounds
    status = np.full(len(g), Status.CONVERGED, dtype=np.int8)
    if not met.all():
        true = defect(linear, unit, u)  # for which a round was reserved
        counts[~met] += 1
        status[~met] = Status.MAX_ROUNDS if rounds >= limit else Status.STALLED
        rounds += 1
        status[~met & (true <= rule.rtol)] = Status.CONVERGED
        status[~met & (true == np.inf)] = Status.NONFINITE
        relative = np.where(met, relative, true)
    u = (u * size).to(g.dtype)
    return DirectSolution(u, status, rounds, counts + recordings.evaluations, relative, found.method)


def defect(linear: Map, g: Float[Tensor, "B D"], u: Float[Tensor, "B D"]) -> NDArray[np.float64]:
    """Return ``||K u + g - u|| / ||K u + g||`` of every row, infinite where that is not finite; one product."""
    value = linear(u) + g
    error, scale = (each[0] for each in rows_last(*(row_norms(v).unsqueeze(1) for v in (value - u, value))))
    with np.errstate(all="ignore"):
        relative: NDArray[np.float64] = np.where(error == 0, 0.0, error / scale)
    return np.where(np.isfinite(relative), relative, np.inf)


@dataclass(frozen=True)
class _Found:
    """The solution of rows of unit length, and which of them are solved."""

    u: Float[Tensor, "B D"]
    met: NDArray[np.bool_]
    relative: NDArray[np.float64]
    rounds: int
    method: str


def _of_series(series: Summed) -> _Found:
    """What the series alone has found."""
    relative = series.residual / np.where(series.length > 0, series.length, 1.0)
    return _Found(series.u, series.solved, relative, series.products, "series")


def _by_gmres(
    unit: Float[Tensor, "B D"],
    product: _Products,
    series: Summed | None,
    gmres: GMRES,
    rtol: float,
    noise: float,
    limit: int,
) -> _Found:
    """Solve the rows that the series has left, from where it has left them; all rows where there was no series."""
    left, part, point, rest = None, product, None, unit
    if series is not None:
        point, rest = series.u, series.rest
        if series.solved.any():
            left = np.flatnonzero(~series.solved)
            index = to_device(left, unit.device)
            part, point, rest = product.narrowed(left, _MANY), point[index], rest[index]
    made = 0 if series is None else series.products
    found = gmres.solve(
        part,
        rest,
        0.0,
        limit - made,
        solution_tolerance=SolutionTolerance(rtol, point),
        of_identity_minus=True,
        noise=noise,
    )
    assert found.length is not None  # there is a tolerance relative to the solution
    assert found.absolute is not None
    met, residual, length = found.converged.numpy(), found.absolute, found.length
    # A row that is not finite keeps the point from which it began.
    fine = np.isfinite(found.residual.numpy())
    step = found.x if fine.all() else torch.where(to_device(fine, unit.device).unsqueeze(1), found.x, 0.0)
    u = step if point is None else point + step
    if series is not None and left is not None:
        u = series.u.index_copy(0, index, u)
        some = met, residual, length
        met, residual, length = series.solved.copy(), series.residual.copy(), series.length.copy()
        for kept, new in zip((met, residual, length), some, strict=True):
            kept[left] = new
    with np.errstate(all="ignore"):  # of a row that is not finite
        relative = residual / np.where(length > 0, length, 1.0)
    method = "gmres" if left is None else "series, gmres"
    return _Found(u, met, relative, made + found.products, method)


class _Products(NarrowingProduct):
    """The products ``K v`` of some rows, counted row by row."""

    def __init__(self, linear: Map, rows: NDArray[np.int64], counts: NDArray[np.int64], recordings: Recordings) -> None:
        self.linear, self.rows, self.counts, self.recordings = linear, rows, counts, recordings

    def __call__(self, v: Float[Tensor, "B D"], rows: NDArray[np.bool_]) -> Float[Tensor, "B D"]:
        self.counts[self.rows] += rows
        return self.linear(v)

    def narrowed(self, rows: NDArray[np.int64], expected: float) -> _Products:
        kept = self.rows[rows]
        return _Products(self.recordings.part(kept, expected >= _WORTH), kept, self.counts, self.recordings)
