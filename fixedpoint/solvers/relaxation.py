r"""Adaptive relaxation: rules for ``beta_k`` of Anderson acceleration, separately for every row.

With the combined point ``x_k`` and its residual ``rest_k = r_k - dR gamma``, the next point is
``z_{k+1} = x_k + beta_k rest_k``. The gain ``theta_k = ||rest_k|| / ||r_k||`` is the share of the residual that the
history does not explain; to first order ``||r_{k+1}|| <= theta_k ((1 - beta_k) + kappa beta_k) ||r_k||`` for a map with
Lipschitz constant ``kappa``. (Evans, Pollock, Rebholz & Xiao 2020, "A proof that Anderson acceleration improves the
convergence rate in linearly converging fixed-point methods", for the gain; the rule below is a heuristic.)

    gain        beta_k = beta (0.9 - theta_k / 2): smaller steps while the history explains little
    distance    beta_k follows the factor that would have been best for the last rest,
                beta* = beta_{k-1} + rest_{k-1} . r_k / ||rest_{k-1}||^2,
                which gives the point of that line nearest to f(z_k)

(Lepage-Saucier 2024, "Anderson acceleration with adaptive relaxation for convergent fixed-point iterations", the
minimum-distance strategy.) ``beta*`` is averaged over the rounds. The more it fluctuates, the closer ``beta_k`` stays
to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fixedpoint.core.evaluator import Evaluated
from fixedpoint.core.reduce import row_norms, vecdot

__all__ = ["Distance", "by_gain"]

# Weights of the latest value in the moving averages of beta* and of its squared changes.
_FRESH_MEAN, _FRESH_CHANGE = 0.1, 0.2
# Outside of this range the strategy does not suit the map, and beta is 1.
_SMALLEST, _LARGEST = 0.05, 1.5


def by_gain(gain: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """``0.9 - theta / 2``; 1, which gives a plain step, where the history explains nothing."""
    return torch.where(gain < 1.0, 0.9 - 0.5 * gain, 1.0)


@dataclass(frozen=True)
class Distance:
    """The moving averages of ``beta*`` and of its squared changes, and the last step, for every row.

    ``mean`` and ``change`` are the averages, ``last`` is the last ``beta*``; ``rest`` is the rest of the last step, and
    ``beta`` the relaxation it was taken with. All but ``rest`` are float64.
    """

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
        """Take in the factor that would have been best for the step to ``at``; only the rows ``linked`` have one."""
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
