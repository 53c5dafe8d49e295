r"""A mixture of two Poisson distributions, fitted by expectation-maximisation.

With counts ``n_j`` of the values ``j``, the state is ``(p, mu_1, mu_2)``, the weight of the first component and both
means:

    w_j   = p mu_1^j e^{-mu_1} / (p mu_1^j e^{-mu_1} + (1 - p) mu_2^j e^{-mu_2})
    p'    = sum n_j w_j / sum n_j
    mu_1' = sum n_j j w_j / sum n_j w_j
    mu_2' = sum n_j j (1 - w_j) / sum n_j (1 - w_j)

(Hasselblad 1969, "Estimation of finite mixtures of distributions from the exponential family".) The classic data are
the daily numbers of deaths of women of eighty and over reported in *The Times* of London over three years (Hasselblad
1969; Titterington, Smith & Makov 1985, "Statistical analysis of finite mixture distributions"). The estimate for them
is ``p = .3599, mu = 1.256, 2.663``, for which EM takes thousands of iterations. It is the first example of Varadhan &
Roland 2008, "Simple and globally convergent methods for accelerating the convergence of any EM algorithm" (SQUAREM).

Every iterate of EM preserves the mean of the data, ``p mu_1 + (1 - p) mu_2``; the task checks this identity.
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
"""Number of days with 0, 1, 2, ... 9 deaths."""


@dataclass(eq=False)
class PoissonMixtureProblem(ClassicProblem):
    """One EM iteration of a two-component Poisson mixture, ``D = 3``.

    Attributes
    ----------
    counts
        How often each of the values 0, 1, 2, ... occurred, shape ``(B, J)``.
    values
        These values, shape ``(J,)``.
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
        """The log-likelihood of the counts, up to a constant from the factorials."""
        return (self.counts * torch.logaddexp(*self._joint(z))).sum(1)

    def reference(self) -> Float[Tensor, "B 3"]:
        """The maximum, by Newton's method from the state after 500 iterations of EM, which is far from the saddle."""
        return newton(self, picard(self, 500))

    def error(self, z: Float[Tensor, "B 3"], exact: Float[Tensor, "B 3"]) -> Float[Tensor, " B"]:
        """The relative error, the smaller one of both orders of the components."""
        swapped = torch.stack((1 - exact[:, 0], exact[:, 2], exact[:, 1]), dim=1)
        return torch.minimum(super().error(z, exact), super().error(z, swapped))

    def checks(self, z: Float[Tensor, "B 3"]) -> dict[str, Float[Tensor, " B"]]:
        mean = ((self.values * self.counts).sum(1) / self.counts.sum(1)).double()
        p, first, second = z.double().unbind(1)
        return {"mean_defect": (p * first + (1 - p) * second - mean).abs() / mean}

    def _joint(self, z: Float[Tensor, "B 3"]) -> tuple[Float[Tensor, "B J"], Float[Tensor, "B J"]]:
        """For both components, the logarithm of weight times probability of every value, without the factorial."""
        p, first, second = z.unsqueeze(2).unbind(1)
        return p.log() + self.values * first.log() - first, (-p).log1p() + self.values * second.log() - second


@dataclass(frozen=True)
class PoissonMixtureEM(RandomTask):
    """EM of a two-component Poisson mixture, on the classic data or on random data."""

    data: Literal["times", "synthetic"] = option(
        "times", help="times: deaths reported in The Times; synthetic: drawn from the mixture below"
    )
    weight: float = option(0.4, gt=0.0, lt=1.0, help="synthetic: p")
    means: tuple[float, ...] = option((1.0, 3.0), help="synthetic: both means; EM is slow if they are close")
    samples: int = option(1000, ge=10, help="synthetic: number of observations")

    def check(self) -> None:
        if len(self.means) != 2 or min(self.means) <= 0 or self.means[0] == self.means[1]:
            raise self.refuse("means", f"must be two different numbers above 0, got {self.means}")

    def draw(self, generator: torch.Generator) -> PoissonMixtureProblem:
        if self.data == "times":
            counts = torch.tensor([TIMES], dtype=torch.float64, device="cpu")
            return PoissonMixtureProblem(torch.tensor([[0.3, 1.0, 2.5]], dtype=torch.float64, device="cpu"), counts)
        first = torch.rand(self.samples, generator=generator, dtype=torch.float64, device="cpu") < self.weight
        rates = torch.where(first, self.means[0], self.means[1]).double()
        drawn = torch.poisson(rates, generator=generator).long()
        # The same number of values for all rows; larger values are drawn with negligible probability.
        length = math.ceil(max(self.means) + 12 * math.sqrt(max(self.means)) + 12)
        counts = torch.bincount(drawn.clamp(max=length - 1), minlength=length).double().unsqueeze(0)
        mean = drawn.double().mean()
        return PoissonMixtureProblem(torch.stack((mean * 0 + 0.5, mean * 0.5, mean * 1.5)).unsqueeze(0), counts)
