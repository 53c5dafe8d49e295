"""Points (a state, the problem's value there, error and scale), and the best point of every row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.reduce import row_norms
from fixedpoint.core.transfer import to_device

__all__ = ["Best", "Evaluated", "Kept", "Numbers", "Point", "select"]


@dataclass(frozen=True)
class Numbers:
    """What the host knows of a point, read once a round: rows are judged, compared and traced by these alone.

    Attributes
    ----------
    error, scale
        Shape ``(B, blocks)``, float64: the measure of the point.
    finite
        Shape ``(B,)``, bool: whether the row is finite.
    settled
        Shape ``(B,)``, bool: see :class:`.Measure`; None where there is no such condition.
    """

    error: NDArray[np.float64]
    scale: NDArray[np.float64]
    finite: NDArray[np.bool_]
    settled: NDArray[np.bool_] | None = None

    @staticmethod
    def of(error: NDArray[np.float64], scale: NDArray[np.float64], settled: NDArray[np.bool_] | None = None) -> Numbers:
        """Return the numbers of a point that is finite where error and scale are."""
        finite = np.isfinite(error) & np.isfinite(scale)
        rows: NDArray[np.bool_] = finite[:, 0] if finite.shape[1] == 1 else np.all(finite, axis=1)
        return Numbers(error, scale, rows, settled)

    def where(self, mask: NDArray[np.bool_], other: Numbers) -> Numbers:
        """Return these in the rows of ``mask``, and ``other`` elsewhere."""
        column, settled = mask[:, None], self.settled
        if settled is not None and other.settled is not None:
            settled = np.where(mask, settled, other.settled)
        return Numbers(
            np.where(column, self.error, other.error),
            np.where(column, self.scale, other.scale),
            np.where(mask, self.finite, other.finite),
            settled,
        )


@dataclass(frozen=True)
class Point:
    """A state, the problem's value there, and its measure.

    Attributes
    ----------
    z, fz
        Shape ``(B, D)``: the state, and ``f`` there.
    error, scale
        Shape ``(B, blocks)``, float64: the measure of exactly this point.
    """

    z: Float[Tensor, "B D"]
    fz: Float[Tensor, "B D"]
    error: Float[Tensor, "B blocks"]
    scale: Float[Tensor, "B blocks"]


@dataclass(frozen=True)
class Evaluated(Point):
    """A point with its residual, as an evaluation returns it.

    The memory of ``z`` and of the residual may be reused two evaluations later; clone what is kept longer.

    Attributes
    ----------
    residual
        Shape ``(B, D)``: ``fz - z``.
    plain
        Whether error and scale are the Euclidean norms of residual and value of the whole row, so that these need not
        be computed again.
    settled
        Shape ``(B,)``, bool: whether the problem's measure allows the row to be called converged (``Measure.settled``);
        None where it sets no such condition.
    numbers
        Error and scale on the host, once the loop has read them: in a step they are there.
    """

    residual: Float[Tensor, "B D"]
    plain: bool = False
    settled: Bool[Tensor, " B"] | None = None
    numbers: Numbers | None = field(default=None, compare=False)

    @functools.cached_property
    def finite(self) -> Bool[Tensor, " B"]:
        """Shape ``(B,)``, bool: whether error and scale of the row are finite."""
        return (self.error.isfinite() & self.scale.isfinite()).all(dim=1)

    @functools.cached_property
    def residual_norm(self) -> Float[Tensor, " B"]:
        """Shape ``(B,)``, float64: the Euclidean norm of the residual of every row."""
        return self.error[:, 0] if self.plain else row_norms(self.residual.detach())

    @functools.cached_property
    def value_norm(self) -> Float[Tensor, " B"]:
        """Shape ``(B,)``, float64: the Euclidean norm of the value of every row."""
        return self.scale[:, 0] if self.plain else row_norms(self.fz.detach())

    def where(self, mask: Bool[Tensor, " B"], other: Evaluated) -> Evaluated:
        """Return this point in the rows of ``mask`` and ``other`` elsewhere, in new memory."""
        column = mask.unsqueeze(1)
        settled = self.settled
        if settled is not None and other.settled is not None:
            settled = torch.where(mask, settled, other.settled)
        return Evaluated(
            z=torch.where(column, self.z, other.z),
            fz=torch.where(column, self.fz, other.fz),
            residual=torch.where(column, self.residual, other.residual),
            error=torch.where(column, self.error, other.error),
            scale=torch.where(column, self.scale, other.scale),
            plain=self.plain and other.plain,
            settled=settled,
        )

    def with_rows_of(self, best: Evaluated, rows: NDArray[np.bool_]) -> Evaluated:
        """Return this point with the rows of ``best`` in ``rows``, on the host too, where both are known there."""
        merged = best.where(to_device(rows, self.z.device), self)
        if self.numbers is None or best.numbers is None:
            return merged
        return replace(merged, numbers=best.numbers.where(rows, self.numbers))


@dataclass(frozen=True)
class Kept:
    """The best points so far: ``z`` and ``fz``, shape ``(B, D)``, their numbers, and those by which they compare."""

    z: Float[Tensor, "B D"]
    fz: Float[Tensor, "B D"]
    numbers: Numbers
    merit: NDArray[np.float64]

    def with_rows(self, index: Int[Tensor, " k"], rows: NDArray[np.int64], other: Kept) -> Kept:
        """Return these points with ``rows`` replaced by those of ``other``; in place unless gradients flow."""
        if torch.is_grad_enabled():
            z, fz = self.z.index_copy(0, index, other.z), self.fz.index_copy(0, index, other.fz)
        else:
            z, fz = self.z.index_copy_(0, index, other.z), self.fz.index_copy_(0, index, other.fz)
        own, new = self.numbers, other.numbers
        error, scale, finite = own.error.copy(), own.scale.copy(), own.finite.copy()
        error[rows], scale[rows], finite[rows] = new.error, new.scale, new.finite
        merit = self.merit.copy()
        merit[rows] = other.merit
        return Kept(z, fz, Numbers(error, scale, finite), merit)


class Best:
    """The best point of every row: that of smallest error, or the one where the row ended.

    The first point stays where no later one was finite. If a point is the best of every row, nothing is copied: it is
    *lent*, in memory that the evaluator still uses, and copied only before that memory is reused. If it is the best of
    no row, nothing is done at all.

    Parameters
    ----------
    known
        The best points so far; None before the first evaluation.
    merit
        Computes from error and scale, ``(B, blocks)``, the number ``(B,)`` by which points are compared: smaller is
        better.
    """

    def __init__(
        self,
        known: Kept | None,
        merit: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
    ) -> None:
        self._kept = known
        self._merit = merit
        self._lent = False

    def see(self, at: Evaluated, numbers: Numbers, live: NDArray[np.bool_]) -> None:
        """Compare a new point with the best one in the rows of ``live``, which are still running."""
        merit, known = self._merit(numbers.error, numbers.scale), self._kept
        if known is None:
            self._lend(at, numbers, merit)
            return
        better = live & numbers.finite & ((merit < known.merit) | ~known.numbers.finite)
        if bool(better[0]) if better.size == 1 else better.all():
            self._lend(at, numbers, merit)
        elif better.size > 1 and better.any():
            self._overwrite(better, at, numbers, merit)

    def keep(self, rows: NDArray[np.bool_], at: Evaluated, numbers: Numbers) -> None:
        """Make ``at`` the point of ``rows``, whatever its error: they ended there, and no later point replaces it."""
        merit = self._merit(numbers.error, numbers.scale)
        if self._kept is None or rows.all():
            self._lend(at, numbers, merit)
        elif self._kept.z is not at.z:  # else it is the best of every row
            self._overwrite(rows, at, numbers, merit)

    def release(self, memory: Tensor) -> None:
        """Copy the lent point if ``memory``, which is about to be overwritten, is its buffer."""
        if self._lent and self._kept is not None and memory.data_ptr() == self._kept.z.data_ptr():
            self._copy()

    def part(self) -> None:
        """Copy the lent point: the evaluator gives up its memory."""
        if self._lent:
            self._copy()

    @property
    def kept(self) -> Kept | None:
        """The best point of every row, possibly in lent memory; None before the first one."""
        return self._kept

    @property
    def own(self) -> Kept | None:
        """The best point of every row, in memory that nothing else uses; None before the first one."""
        self.part()
        return self._kept

    def _lend(self, at: Evaluated, numbers: Numbers, merit: NDArray[np.float64]) -> None:
        self._kept, self._lent = Kept(at.z, at.fz, numbers, merit), True

    def _overwrite(self, rows: NDArray[np.bool_], at: Evaluated, numbers: Numbers, merit: NDArray[np.float64]) -> None:
        """Overwrite some rows of the best point, in memory that nothing else uses."""
        known = self.own
        assert known is not None
        mask = to_device(rows, at.z.device)
        self._kept = Kept(
            select(mask, at.z, known.z),
            select(mask, at.fz, known.fz),
            numbers.where(rows, known.numbers),
            np.where(rows, merit, known.merit),
        )

    def _copy(self) -> None:
        """Copy the lent point, one tensor after the other, so that at most one tensor is held twice at a time."""
        known = self._kept
        assert known is not None  # what is lent is there
        z, fz, numbers, merit = known.z, known.fz, known.numbers, known.merit
        del known
        self._kept, self._lent = None, False
        fz = fz.clone()
        z = z.clone()
        self._kept = Kept(z, fz, numbers, merit)


def select(mask: Bool[Tensor, " B"], chosen: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> Tensor:
    """Return ``chosen`` in the rows of ``mask``, ``other`` elsewhere; written into ``other`` unless gradients flow."""
    out = None if torch.is_grad_enabled() else other
    return torch.where(mask.unsqueeze(1), chosen, other, out=out)
