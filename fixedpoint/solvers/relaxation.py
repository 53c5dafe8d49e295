r"""Relaxation that adapts: ``beta_k`` of Anderson acceleration, row by row.

With the combined point ``x_k`` and its residual ``rest_k = r_k - dR gamma``, the next point is
``z_{k+1} = x_k + beta_k rest_k``. The gain ``theta_k = ||rest_k|| / ||r_k||`` says what of the residual the history
could not explain; to first order ``||r_{k+1}|| <= theta_k ((1 - beta_k) + kappa beta_k) ||r_k||`` for a map with
Lipschitz constant ``kappa``. (Evans, Pollock, Rebholz & Xiao 2020, "A proof that Anderson acceleration improves the
convergence rate in linearly converging fixed-point methods", for the gain; the rule made of it is a rule of thumb.)

    gain        beta_k = beta (0.9 - theta_k / 2): careful while the history explains little
    distance    beta_k follows the factor by which it should have gone along the last rest,
                beta* = beta_{k-1} + rest_{k-1} . r_k / ||rest_{k-1}||^2,
                the nearest point of that line to f(z_k)

(Lepage-Saucier 2024, "Anderson acceleration with adaptive relaxation for convergent fixed-point iterations", the
minimum-distance strategy.) What is seen of ``beta*`` is averaged over the rounds, and trusted as far as it is steady.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated
from fixedpoint.core.reduce import row_norms, vecdot

__all__ = ["Distance", "by_gain"]

# Weights of what was seen last in the mean of beta*, and in that of its squared changes.
_FRESH_MEAN, _FRESH_CHANGE = 0.1, 0.2
# Beyond these beta* says that the map is not what the strategy was made for.
_SMALLEST, _LARGEST = 0.05, 1.5


def by_gain(gain: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """``0.9 - theta / 2``; 1 where nothing was explained, which is a plain step."""
    return torch.where(gain < 1.0, 0.9 - 0.5 * gain, 1.0)


@dataclass(frozen=True)
class Distance:
    """What has been seen of ``beta*``: its mean, its mean squared change, the last one; the last rest and its beta."""

    mean: Float[Tensor, " B"]
    change: Float[Tensor, " B"]
    last: Float[Tensor, " B"]
    beta: Float[Tensor, " B"]
    rest: Float[Tensor, "B D"] | None = None

    @classmethod
    def begin(cls, like: Float[Tensor, " B"]) -> Distance:
        one = torch.ones_like(like)
        return cls(mean=one, change=one, last=one, beta=one)

    def seen(self, at: Evaluated, linked: Bool[Tensor, " B"]) -> Distance:
        """With the factor that would have been right for the last step, in the rows that ``at`` is a step of."""
        if self.rest is None:
            return self
        squares = row_norms(self.rest) ** 2
        along = vecdot(self.rest, at.residual)
        wanted = self.beta + along / torch.where(squares > 0, squares, 1.0)
        wanted = torch.where(linked & (squares > 0) & wanted.isfinite(), wanted, self.last)
        change = (1 - _FRESH_CHANGE) * self.change + _FRESH_CHANGE * (wanted - self.last) ** 2
        mean = (1 - _FRESH_MEAN) * self.mean + _FRESH_MEAN * wanted
        doubt = change.sqrt().clamp(max=1.0)
        beta = doubt + (1 - doubt) * mean
        beta = torch.where((beta > _SMALLEST) & (beta < _LARGEST), beta, 1.0)
        return replace(self, mean=mean, change=change, last=wanted, beta=beta)
