"""Points: a state, the problem's value there, and what was measured; and the best of them for every row."""

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
    """A point, the problem's value there, and its measure.

    Attributes
    ----------
    z, fz
        Shape ``(B, D)``.
    error, scale
        Shape ``(B, blocks)``, float64: the problem's measure of this very point.
    finite
        Shape ``(B,)``: whether the row's value and error are finite.
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
        """With the rows of ``other`` at these places; in this point's memory unless gradients flow."""
        places = zip((self.z, self.fz, *self.measure), (other.z, other.fz, *other.measure), strict=True)
        if torch.is_grad_enabled():
            return Point(*(own.index_copy(0, index, new) for own, new in places))
        return Point(*(own.index_copy_(0, index, new) for own, new in places))

    def overwritten(self, mask: Bool[Tensor, " B"], other: Point) -> Point:
        """``other`` in the rows of ``mask``, this point elsewhere; in this point's memory unless gradients flow."""
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
    """A point with its residual ``fz - z``, as an evaluation yields it.

    The memory of ``z`` and of the residual may be used again two evaluations later; clone what is kept longer.

    Attributes
    ----------
    residual
        Shape ``(B, D)``.
    plain
        Whether error and scale are the Euclidean norms of the whole residual and value, so that nobody need take them
        again.
    settled
        Shape ``(B,)``: whether the measure lets the row be called converged at all; None where it has nothing to say.
    """

    residual: Float[Tensor, "B D"]
    plain: bool = False
    settled: Bool[Tensor, " B"] | None = None

    @functools.cached_property
    def residual_norm(self) -> Float[Tensor, " B"]:
        """Euclidean norm of the residual of every row, float64."""
        return self.error[:, 0] if self.plain else row_norms(self.residual.detach())

    @functools.cached_property
    def value_norm(self) -> Float[Tensor, " B"]:
        """Euclidean norm of the value of every row, float64."""
        return self.scale[:, 0] if self.plain else row_norms(self.fz.detach())

    def where(self, mask: Bool[Tensor, " B"], other: Evaluated) -> Evaluated:
        """This point in the rows of ``mask``, ``other`` elsewhere."""
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
    """The judged point of smallest error of every row, or the one it ended at; the first one where none was finite.

    The point seen last is merged in when it is asked for or when the next one comes, so that nothing is copied where
    the host finds out in time that it is the best of every row: then it is *lent*, and copied only when its memory is
    about to be used again. By ``merit`` points are compared: the largest of their errors, or another number made of
    errors and scales.
    """

    def __init__(self, point: Point | None, merit: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._point = point
        self._merit = merit
        self._pending: tuple[Evaluated, Tensor] | None = None
        self._lent = False

    def see(self, at: Evaluated, live: Bool[Tensor, " B"]) -> None:
        """Take in a point, in the rows of ``live``."""
        self._merge()
        known, merit = self._point, self._merit(at.error, at.scale)
        if known is None:
            better = torch.ones_like(live)
        else:
            better = live & at.finite & ((merit < self._merit(known.error, known.scale)) | ~known.finite)
        self._pending = at, better

    @property
    def improved(self) -> Bool[Tensor, " B"]:
        """The rows whose best point is the one seen last."""
        assert self._pending is not None  # asked for right after an evaluation
        return self._pending[1]

    def settle(self, everywhere: bool) -> None:
        """Say, as soon as the host knows, whether the last point is the best of every row."""
        if everywhere and self._pending is not None:
            self._point, self._lent, self._pending = self._pending[0], True, None
        else:
            self._merge()

    def keep(self, rows: Bool[Tensor, " B"], everywhere: bool, at: Evaluated) -> None:
        """Make ``at`` the point of these rows, whatever its error: they ended there, and nothing takes its place."""
        self._merge()
        if everywhere or self._point is None:
            self._point, self._lent = at, True
        else:
            self._point = self.own.overwritten(rows, at)

    def release(self, memory: Tensor) -> None:
        """Say that a buffer is about to be written into."""
        if self._lent and self._point is not None and memory.data_ptr() == self._point.z.data_ptr():
            self._copy()

    @property
    def point(self) -> Point:
        """The best point of every row; lent or not."""
        self._merge()
        assert self._point is not None  # every evaluation is seen
        return self._point

    @property
    def known(self) -> Point | None:
        """:attr:`own`, or None where no point has been seen or kept."""
        self._merge()
        return None if self._point is None else self.own

    @property
    def own(self) -> Point:
        """The best point of every row, in memory that is nobody else's."""
        self._merge()
        if self._lent:
            self._copy()
        return self.point

    def _copy(self) -> None:
        """Move the lent point into memory of its own, one tensor after the other: neither is held twice for long."""
        assert self._point is not None  # what is lent is there
        z, fz, (error, scale, finite) = self._point.z, self._point.fz, self._point.measure
        self._point, self._lent = None, False
        fz = fz.clone()
        z = z.clone()
        self._point = Point(z, fz, error, scale, finite)

    def _merge(self) -> None:
        """Merge the last point into the best one, in memory of its own."""
        if self._pending is None:
            return
        (at, better), self._pending = self._pending, None
        if self._point is None:
            self._point, self._lent = at, True
            self._copy()
        else:
            self._point = self.own.overwritten(better, at)


def select(mask: Bool[Tensor, " B"], chosen: Float[Tensor, "B D"], other: Float[Tensor, "B D"]) -> Tensor:
    """``chosen`` in the rows of ``mask``, ``other`` elsewhere; written into ``other`` unless gradients flow."""
    out = None if torch.is_grad_enabled() else other
    return torch.where(mask.unsqueeze(1), chosen, other, out=out)
