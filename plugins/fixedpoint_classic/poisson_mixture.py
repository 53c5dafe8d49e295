r"""A mixture of two Poisson distributions, fitted by expectation-maximisation.

Counts ``n_j`` of the value ``j``; the state is ``(p, mu_1, mu_2)``, the weight of the first component and both means.

    w_j   = p mu_1^j e^{-mu_1} / (p mu_1^j e^{-mu_1} + (1 - p) mu_2^j e^{-mu_2})
    p'    = sum n_j w_j / sum n_j
    mu_1' = sum n_j j w_j / sum n_j w_j
    mu_2' = sum n_j j (1 - w_j) / sum n_j (1 - w_j)

(Hasselblad 1969, "Estimation of finite mixtures of distributions from the exponential family".) The classic data are
the deaths of women of eighty and over reported in *The Times* of London, day by day over three years (there, and in
Titterington, Smith & Makov 1985, "Statistical analysis of finite mixture distributions"). Their estimate is ``p =
.3599, mu = 1.256, 2.663``, to which EM takes thousands of iterations; it is the first example of Varadhan & Roland
2008, "Simple and globally convergent methods for accelerating the convergence of any EM algorithm" (SQUAREM).

Every iterate of EM preserves the mean of the data, ``p mu_1 + (1 - p) mu_2``, which is the identity checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint_classic.newton import newton, picard
from fixedpoint_classic.problem import ClassicProblem, RandomTask

__all__ = ["TIMES", "PoissonMixtureEM", "PoissonMixtureProblem"]

TIMES = (162, 267, 271, 185, 111, 61, 27, 8, 3, 1)
"""Days with 0, 1, 2, ... 9 deaths."""


@dataclass(eq=False)
class PoissonMixtureProblem(ClassicProblem):
    """One EM iteration of a two-component Poisson mixture, ``D = 3``.

    Attributes
    ----------
    counts
        Shape ``(B, values)``: how often 0, 1, 2, ... was seen.
    """

    counts: Float[Tensor, "B J"]
    values: Float[Tensor, " J"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.values = torch.arange(self.counts.shape[1], dtype=self.counts.dtype, device=self.counts.device)

    def __call__(self, z: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
        first, second = self._joint(z)
        share = torch.sigmoid(first - second) * self.counts
        rest = self.counts - share
        columns = (
            share.sum(1) / self.counts.sum(1),
            (self.values * share).sum(1) / share.sum(1),
            (self.values * rest).sum(1) / rest.sum(1),
        )
        return torch.stack(columns, dim=1)

    def log_likelihood(self, z: Float[Tensor, "B 3"]) -> Float[Tensor, " B"]:
        """Of the counts, up to the constant of their factorials."""
        return (self.counts * torch.logaddexp(*self._joint(z))).sum(1)

    def reference(self) -> Float[Tensor, "B 3"]:
        """By Newton's method from where EM is after 500 iterations, near the maximum and far from the saddle."""
        return newton(self, picard(self, 500))

    def error(self, z: Float[Tensor, "B 3"], exact: Float[Tensor, "B 3"]) -> Float[Tensor, " B"]:
        """The components may come in either order."""
        swapped = torch.stack((1 - exact[:, 0], exact[:, 2], exact[:, 1]), dim=1)
        return torch.minimum(super().error(z, exact), super().error(z, swapped))

    def checks(self, z: Float[Tensor, "B 3"]) -> dict[str, Float[Tensor, " B"]]:
        mean = ((self.values * self.counts).sum(1) / self.counts.sum(1)).double()
        p, first, second = z.double().unbind(1)
        return {"mean_defect": (p * first + (1 - p) * second - mean).abs() / mean}

    def _joint(self, z: Float[Tensor, "B 3"]) -> tuple[Float[Tensor, "B J"], Float[Tensor, "B J"]]:
        """Logarithms of weight times probability of every value, without the factorial."""
        p, first, second = z.unsqueeze(2).unbind(1)
        return p.log() + self.values * first.log() - first, (-p).log1p() + self.values * second.log() - second


@dataclass(frozen=True)
class PoissonMixtureEM(RandomTask):
    """EM of a two-component Poisson mixture, on the classic data or on drawn ones."""

    data: Literal["times", "synthetic"] = option(
        "times", help="times: deaths reported in The Times; synthetic: drawn from the mixture below"
    )
    weight: float = option(0.4, gt=0.0, lt=1.0, help="synthetic: p")
    means: tuple[float, ...] = option((1.0, 3.0), help="synthetic: both means; EM is slow where they are near")
    samples: int = option(1000, ge=10, help="synthetic: number of observations")

    def check(self) -> None:
        if len(self.means) != 2 or min(self.means) <= 0 or self.means[0] == self.means[1]:
            raise self.refuse("means", f"must be two different numbers above 0, got {self.means}")

    def draw(self, generator: torch.Generator) -> PoissonMixtureProblem:
        if self.data == "times":
            counts = torch.tensor([TIMES], dtype=torch.float64)
            return PoissonMixtureProblem(torch.tensor([[0.3, 1.0, 2.5]], dtype=torch.float64), counts)
        first = torch.rand(self.samples, generator=generator, dtype=torch.float64) < self.weight
        rates = torch.where(first, self.means[0], self.means[1]).double()
        drawn = torch.poisson(rates, generator=generator).long()
        # One number of values for all rows, beyond what is drawn with any likelihood worth mentioning.
        length = math.ceil(max(self.means) + 12 * math.sqrt(max(self.means)) + 12)
        counts = torch.bincount(drawn.clamp(max=length - 1), minlength=length).double().unsqueeze(0)
        mean = drawn.double().mean()
        return PoissonMixtureProblem(torch.stack((mean * 0 + 0.5, mean * 0.5, mean * 1.5)).unsqueeze(0), counts)
