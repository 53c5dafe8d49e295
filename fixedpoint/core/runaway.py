"""The test for states that run away to infinity, from the errors and scales that are measured anyway."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fixedpoint.core.row_history import Measured
from fixedpoint.core.small import Truth, log2, some, taken, where

__all__ = ["Origin", "Runaway"]

# If the error rises by more than this factor in one round, the solver took too long a step: the map is not the cause.
_SUDDEN = 4.0

# Error and scale, (B, blocks), of the first point of a solve.
Origin = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass
class Runaway:
    """What the test for running away stores of every row: a state runs away if it grows while its error does not fall.

    Relative to a state that has run away, every residual is small: ``f(z) = z + 1`` has no fixed point, but at
    ``z = 1e6`` its residual is 1e-6 of ``|z|``. If the error falls as ``e ~ s^-p`` while the scale ``s`` grows, the
    state runs to infinity by a power law, whatever its size. Let ``e'`` be the error at the start, or when it was last
    halved. A block is in doubt if its scale has grown by more than ``(e'/e)^(1/3)`` since then. It stays in doubt until
    the error is halved without such growth. An iteration that converges from zero is in doubt at first, but no longer
    once its error is a sixteenth of the first one. A single long step may lead far out at once, to where only rounding
    is left of the error; that is no power law. Errors below the rounding of the scale count as equal to it.

    When a solver takes too long a step and comes back, the way back is no progress. A halving therefore requires that
    both the error and the relative error are halved, compared with the largest error of a gradual rise. A point whose
    error is suddenly more than four times as large is ignored until the error is half of that again.

    Attributes
    ----------
    base, scale
        Shape ``(B, blocks)``, as all others, or floats: error and scale when the error was last halved, or when the
        state had returned to half its scale.
    error, width
        The largest error since then, and the scale at that point.
    peak
        The largest error since a sudden rise; zero if there is none.
    halvings
        The number of halvings with such growth, minus the number of those without, at least 0.
    adrift
        Whether such growth has occurred since the last halving.
    """

    base: Any
    scale: Any
    error: Any
    width: Any
    peak: Any
    halvings: Any
    adrift: Any

    @staticmethod
    def begin(at: Measured, origin: Origin | None, eps: float) -> Runaway:
        """Return the state of the test at the first point of a solve, which may continue one from ``origin``."""
        none = where(at.error == at.error, 0.0, 0.0)
        if origin is None:
            return Runaway(at.error, at.scale, at.error, at.scale, none, none, none != 0.0)
        # An earlier solve led here, perhaps far out. Its steps are unknown, so one halving with growth is assumed.
        error, scale = (part.item() if part.size == 1 else part for part in origin)
        begun = Runaway(error, scale, error, scale, none, none + 1.0, none != 0.0)
        begun.update(at, eps)
        return begun

    def update(self, at: Measured, eps: float) -> None:
        """Note a further point."""
        finite = at.finite if at.finite.__class__ is bool else at.finite[:, None]
        floor = 2.0 * eps * at.scale
        error = where(at.error > floor, at.error, floor)
        sudden_rise = finite & (error > _SUDDEN * self.error) & (2.0 * error > self.peak)
        gradual = finite & (sudden_rise ^ True)
        risen = gradual & (at.error > floor) & (error > self.error)
        if some(risen):
            largest, width = where(risen, error, self.error), where(risen, at.scale, self.width)
        else:
            largest, width = self.error, self.width
        fallen = (2.0 * error <= self.base) | (at.scale > 2.0 * self.scale)
        halved = finite & fallen & (2.0 * error <= largest) & (2.0 * error * width <= largest * at.scale)
        fall = where(halved, largest / where(error > 0.0, error, 1.0), 2.0)
        # The cube root of the fall, by multiplications: the bits of powers differ between floats and arrays.
        growth = at.scale / where(self.scale > 0.0, self.scale, 1.0)
        grown = finite & where(self.scale > 0.0, growth * growth * growth > fall, at.scale > 0.0)
        restarted = halved | (gradual & (2.0 * at.scale < self.scale))
        if some(sudden_rise | (self.peak > 0.0)):
            rise = where(error > self.peak, error, self.peak)
            self.peak = where(sudden_rise, rise, where(finite, 0.0, self.peak))
        if some(halved & (grown | (self.halvings > 0.0))):
            fewer = self.halvings - log2(fall)
            fewer = where(fewer > 0.0, fewer, 0.0)
            self.halvings = where(halved, where(grown, self.halvings + 1.0, fewer), self.halvings)
        self.adrift = (halved ^ True) & (self.adrift | grown)
        self.error, self.width = largest, width
        if some(restarted):
            self.base, self.scale = where(restarted, error, self.base), where(restarted, at.scale, self.scale)
            self.error, self.width = where(restarted, error, largest), where(restarted, at.scale, width)

    def doubts(self, rounding: Truth) -> Truth:
        """Whether a small error at the last point does not show convergence yet, shape ``(B, blocks)``.

        ``rounding`` marks blocks whose error may be rounding only: there one halving with growth is accepted, as after
        one long step.
        """
        doubted: Truth = self.adrift | (self.halvings > where(rounding, 1.0, 0.0))
        return doubted

    def take(self, rows: NDArray[np.int64]) -> Runaway:
        """Return the state of the test for some of several rows."""
        return Runaway(**{each.name: taken(getattr(self, each.name), rows) for each in fields(self)})
