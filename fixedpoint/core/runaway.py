"""The test for states that run away to infinity, from the errors and scales that are measured anyway."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.point import Evaluated

__all__ = ["Origin", "Runaway"]

# The growth of the scale that is allowed while the error falls, as a power of the fall.
_GROWTH = 1 / 3
# If the error rises by more than this factor in one round, the solver took too long a step: the map is not the cause.
_SUDDEN = 4.0

# Error and scale, (B, blocks), of the first point of a solve.
Origin = tuple[Tensor, Tensor]


@dataclass(frozen=True)
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
        Shape ``(B, blocks)``, as all others: error and scale when the error was last halved, or when the state had
        returned to half its scale.
    error, width
        The largest error since then, and the scale at that point.
    peak
        The largest error since a sudden rise; zero if there is none.
    halvings
        The number of halvings with such growth, minus the number of those without, at least 0.
    adrift
        Whether such growth has occurred since the last halving.
    """

    base: Float[Tensor, "B blocks"]
    scale: Float[Tensor, "B blocks"]
    error: Float[Tensor, "B blocks"]
    width: Float[Tensor, "B blocks"]
    peak: Float[Tensor, "B blocks"]
    halvings: Float[Tensor, "B blocks"]
    adrift: Bool[Tensor, "B blocks"]

    @staticmethod
    def begin(at: Evaluated, origin: Origin | None, eps: float) -> Runaway:
        """Return the state of the test at the first point of a solve, which may continue one from ``origin``."""
        none = torch.zeros_like(at.error)
        if origin is None:
            return Runaway(at.error, at.scale, at.error, at.scale, none, none, none != 0)
        # An earlier solve led here, perhaps far out. Its steps are unknown, so one halving with growth is assumed.
        return Runaway(*origin, *origin, none, none + 1.0, none != 0).updated(at, eps)

    def updated(self, at: Evaluated, eps: float) -> Runaway:
        """Return the state of the test after a further point."""
        finite = at.finite.unsqueeze(1)
        floor = 2.0 * eps * at.scale
        error = torch.maximum(at.error, floor)
        sudden_rise = finite & (error > _SUDDEN * self.error) & (2.0 * error > self.peak)
        risen = finite & ~sudden_rise & (at.error > floor) & (error > self.error)
        largest, width = torch.where(risen, error, self.error), torch.where(risen, at.scale, self.width)
        fallen = (2.0 * error <= self.base) | (at.scale > 2.0 * self.scale)
        halved = finite & fallen & (2.0 * error <= largest) & (2.0 * error * width <= largest * at.scale)
        fall = torch.where(halved, largest / torch.where(error > 0, error, 1.0), 2.0)
        grown = finite & (at.scale > fall.pow(_GROWTH) * self.scale)
        restarted = halved | (finite & ~sudden_rise & (2.0 * at.scale < self.scale))
        fewer = (self.halvings - torch.log2(fall)).clamp_min(0.0)
        return Runaway(
            base=torch.where(restarted, error, self.base),
            scale=torch.where(restarted, at.scale, self.scale),
            error=torch.where(restarted, error, largest),
            width=torch.where(restarted, at.scale, width),
            peak=torch.where(finite, torch.where(sudden_rise, torch.maximum(self.peak, error), 0.0), self.peak),
            halvings=torch.where(halved, torch.where(grown, self.halvings + 1.0, fewer), self.halvings),
            adrift=~halved & (self.adrift | grown),
        )

    def doubts(self, rounding: Bool[Tensor, "B blocks"]) -> Bool[Tensor, "B blocks"]:
        """Whether a small error at the last point does not show convergence yet, shape ``(B, blocks)``.

        ``rounding`` marks blocks whose error may be rounding only: there one halving with growth is accepted, as after
        one long step.
        """
        return self.adrift | (self.halvings > torch.where(rounding, 1.0, 0.0))
