"""Points (a state, the problem's value there, error and scale), and the best point of every row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fixedpoint.core.reduce import row_norms

__all__ = ["Best", "Evaluated", "Point", "select"]


@dataclass(frozen=True)
class Point:
    """A state, the problem's value there, and its measure.

    Attributes
    ----------
    z, fz
        Shape ``(B, D)``: the state, and ``f`` there.
    error, scale
        Shape ``(B, blocks)``, float64: the measure of exactly this point.
    finite
        Shape ``(B,)``, bool: whether error and scale of the row are finite.
    """

    z: Float[Tensor, "B D"]
    fz: Float[Tensor, "B D"]
    error: Float[Tensor, "B blocks"]
    scale: Float[Tensor, "B blocks"]
    finite: Bool[Tensor, " B"]

    @property
    def measure(self) -> tuple[Tensor, Tensor, Tensor]:
        """``error``, ``scale`` and ``finite``."""
        return self.error, self.scale, self.finite

    def with_rows(self, index: Int[Tensor, " k"], other: Point) -> Point:
        """Return this point with the rows ``index`` replaced by those of ``other``; in place unless gradients flow."""
        places = zip((self.z, self.fz, *self.measure), (other.z, other.fz, *other.measure), strict=True)
        if torch.is_grad_enabled():
            return Point(*(own.index_copy(0, index, new) for own, new in places))
        return Point(*(own.index_copy_(0, index, new) for own, new in places))

    def overwritten(self, mask: Bool[Tensor, " B"], other: Point) -> Point:
        """Return ``other`` in the rows of ``mask`` and this point elsewhere; in place unless gradients flow."""
        column = mask.unsqueeze(1)
        return Point(
            z=select(mask, other.z, self.z),
            fz=select(mask, other.fz, self.fz),
            error=torch.where(column, other.error, self.error),
            scale=torch.where(column, other.scale, self.scale),
            finite=torch.where(mask, other.finite, self.finite),
        )


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
    """

    residual: Float[Tensor, "B D"]
    plain: bool = False
    settled: Bool[Tensor, " B"] | None = None

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
            finite=torch.where(mask, self.finite, other.finite),
            plain=self.plain and other.plain,
            settled=settled,
        )


class Best:
    """The best point of every row: that of smallest error, or the one where the row ended.

    The first point stays where no later one was finite. The latest point is merged only when the best point is read or
    the next point arrives. If the host has found by then that it is the best of every row, nothing is copied: the point
    is *lent*, in memory that the evaluator still uses, and copied only before that memory is reused.

    Parameters
    ----------
    point
        The best points so far; None before the first evaluation.
    merit
        Computes from error and scale, ``(B, blocks)``, the number ``(B,)`` by which points are compared: smaller is
        better.
    """

    def __init__(self, point: Point | None, merit: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._point = point
        self._merit = merit
        self._pending: tuple[Evaluated, Tensor] | None = None
        self._lent = False

    def see(self, at: Evaluated, live: Bool[Tensor, " B"]) -> None:
        """Compare a new point with the best one in the rows of ``live``, which are still running."""
        self._merge()
        known, merit = self._point, self._merit(at.error, at.scale)
        if known is None:
            better = torch.ones_like(live)
        else:
            better = live & at.finite & ((merit < self._merit(known.error, known.scale)) | ~known.finite)
        self._pending = at, better

    @property
    def improved(self) -> Bool[Tensor, " B"]:
        """Shape ``(B,)``: the rows whose best point is the one seen last."""
        assert self._pending is not None  # asked for right after an evaluation
        return self._pending[1]

    def settle(self, everywhere: bool) -> None:
        """Lend the last point if it is the best of every row (``everywhere``), else merge it."""
        if everywhere and self._pending is not None:
            self._point, self._lent, self._pending = self._pending[0], True, None
        else:
            self._merge()

    def keep(self, rows: Bool[Tensor, " B"], everywhere: bool, at: Evaluated) -> None:
        """Make ``at`` the point of ``rows``, whatever its error: they ended there, and no later point replaces it."""
        self._merge()
        if everywhere or self._point is None:
            self._point, self._lent = at, True
        else:
            self._point = self.own.overwritten(rows, at)

    def release(self, memory: Tensor) -> None:
        """Copy the lent point if ``memory``, which is about to be overwritten, is its buffer."""
        if self._lent and self._point is not None and memory.data_ptr() == self._point.z.data_ptr():
            self._copy()

    @property
    def point(self) -> Point:
        """The best point of every row, possibly in lent memory."""
        self._merge()
        assert self._point is not None  # every evaluation is seen
        return self._point

    @property
    def known(self) -> Point | None:
        """:attr:`own`, or None before the first point."""
        self._merge()
        return None if self._point is None else self.own

    @property
    def own(self) -> Point:
        """The best point of every row, in memory that nothing else uses."""
        self._merge()
        if self._lent:
            self._copy()
        return self.point

    def _copy(self) -> None:
        """Copy the lent point, one tensor after the other, so that at most one tensor is held twice at a time."""
        assert self._point is not None  # what is lent is there
        z, fz, (error, scale, finite) = self._point.z, self._point.fz, self._point.measure
        self._point, self._lent = None, False
        fz = fz.clone()
        z = z.clone()
        self._point = Point(z, fz, error, scale, finite)

    def _merge(self) -> None:
        """Merge the last point into the best one, in memory that nothing else uses."""
        if self._pending is None:
            return
        (at, better), self._pending = self._pending, None
        if self._point is None:
            self._point, self._lent = at, True
            self._copy()
        else:
            self._point = self.own.overwritten(better, at)


def select(mask: Bool[Tensor, " B"], chosen: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> Tensor:
    """Return ``chosen`` in the rows of ``mask``, ``other`` elsewhere; written into ``other`` unless gradients flow."""
    out = None if torch.is_grad_enabled() else other
    return torch.where(mask.unsqueeze(1), chosen, other, out=out)
