"""States that run away: the errors and scales that are measured anyway tell them from those that converge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.point import Evaluated

__all__ = ["Origin", "Runaway"]

# Growth of the scale that the fall of the error may come with, as a power of it.
_GROWTH = 1 / 3
# A rise of the error by more than this in one round is the solver's step too far, not the map's doing.
_SUDDEN = 4.0

# Error and scale, (B, blocks), of the first point of a solve.
Origin = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Runaway:
    """Whether a row's state runs away: it grows while its error does not fall along with it.

    Relative to a state that has run away everything is small: ``f(z) = z + 1`` has no fixed point, and a residual of
    1e-6 of ``|z|`` at ``z = 1e6``. Where errors fall as ``e ~ s^-p`` while the scale ``s`` grows, the state runs to
    infinity by a power law, whatever its size. So a block is in doubt where its scale has grown by more than
    ``(e'/e)^(1/3)`` since the error was ``e'``, at the start or when it was last halved, until the error is halved
    without that. An iteration that converges from zero is in doubt at first, and no longer by the time that its error
    is a sixteenth of the first one. One long step may lead far out at once, to where all that is left of the error is
    rounding: that is no power law. An error counts as no smaller than rounding lets it be seen.

    A solver takes steps too far and comes back: the way back is no fall of the error. So a halving is one of the error
    and of the relative error, against the largest of an unhurried rise: a point whose error is suddenly four times as
    large is not looked at until the error is half of that again.

    All ``(B, blocks)``: ``base`` and ``scale``, error and scale when the error was last halved, or the state came back
    to half its scale; ``error`` and ``width``, the largest error since and its scale; ``peak``, the largest error since
    a sudden rise, zero otherwise; ``halvings``, how many came with such growth, less those that did not; and
    ``adrift``, whether there was such growth since the last one.
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
        none = torch.zeros_like(at.error)
        if origin is None:
            return Runaway(at.error, at.scale, at.error, at.scale, none, none, none != 0)
        # Another solver has led here, perhaps far out: its long steps are not seen, and may have been many.
        return Runaway(*origin, *origin, none, none + 1.0, none != 0).seen(at, eps)

    def seen(self, at: Evaluated, eps: float) -> Runaway:
        finite = at.finite.unsqueeze(1)
        floor = 2.0 * eps * at.scale
        error = torch.maximum(at.error, floor)
        astray = finite & (error > _SUDDEN * self.error) & (2.0 * error > self.peak)
        risen = finite & ~astray & (at.error > floor) & (error > self.error)
        largest, width = torch.where(risen, error, self.error), torch.where(risen, at.scale, self.width)
        fallen = (2.0 * error <= self.base) | (at.scale > 2.0 * self.scale)
        halved = finite & fallen & (2.0 * error <= largest) & (2.0 * error * width <= largest * at.scale)
        fall = torch.where(halved, largest / torch.where(error > 0, error, 1.0), 2.0)
        grown = finite & (at.scale > fall.pow(_GROWTH) * self.scale)
        anew = halved | (finite & ~astray & (2.0 * at.scale < self.scale))
        fewer = (self.halvings - torch.log2(fall)).clamp_min(0.0)
        return Runaway(
            base=torch.where(anew, error, self.base),
            scale=torch.where(anew, at.scale, self.scale),
            error=torch.where(anew, error, largest),
            width=torch.where(anew, at.scale, width),
            peak=torch.where(finite, torch.where(astray, torch.maximum(self.peak, error), 0.0), self.peak),
            halvings=torch.where(halved, torch.where(grown, self.halvings + 1.0, fewer), self.halvings),
            adrift=~halved & (self.adrift | grown),
        )

    def doubts(self, rounding: Bool[Tensor, "B blocks"]) -> Bool[Tensor, "B blocks"]:
        """Whether a small error at the last point says nothing yet; ``rounding``: where all of it may be that."""
        return self.adrift | (self.halvings > torch.where(rounding, 1.0, 0.0))
