r"""A mixture of Gaussians with diagonal covariances, fitted by expectation-maximisation.

    r_ik  = pi_k N(x_i; m_k, diag(v_k)) / sum_l pi_l N(x_i; m_l, diag(v_l))
    pi_k' = mean_i r_ik,    m_k' = sum_i r_ik x_i / sum_i r_ik
    v_k'  = sum_i r_ik (x_i - m_k')^2 / sum_i r_ik

(Dempster, Laird & Rubin 1977, "Maximum likelihood from incomplete data via the EM algorithm", section 4.3; Bishop
2006, "Pattern recognition and machine learning", eqs. 9.23 to 9.26.) EM is slower the closer the components are: its
rate of convergence is the fraction of missing information.

The state is ``(log pi, m, log v)``, so that every extrapolated state is a valid mixture. Since the map returns
normalised weights, its fixed points are as isolated as in terms of ``pi``. The gradient of the log-likelihood is zero
at a fixed point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.core.options import option
from fixedpoint.core.reduce import row_norms
from fixedpoint_classic.newton import newton, picard
from fixedpoint_classic.problem import ClassicProblem, RandomTask

__all__ = ["GaussianMixtureEM", "GaussianMixtureProblem"]


@dataclass(eq=False)
class GaussianMixtureProblem(ClassicProblem):
    """One EM iteration; the state holds ``K`` log-weights, ``K x d`` means and ``K x d`` log-variances.

    Attributes
    ----------
    data
        The observations, one per column, shape ``(B, d, n)``.
    components
        ``K``, the number of components.
    """

    data: Float[Tensor, "B d n"]
    components: int

    def __call__(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        joint = self._joint(z)
        share = (joint - joint.logsumexp(1, keepdim=True)).exp()
        mass = share.sum(2)
        weighted, points = share.unsqueeze(2) / mass[:, :, None, None], self.data.unsqueeze(1)
        means = (weighted * points).sum(3)
        variances = (weighted * (points - means.unsqueeze(3)).square()).sum(3)
        weights = (mass / self.data.shape[2]).log()
        return torch.cat((weights, means.flatten(1), variances.log().flatten(1)), dim=1)

    def log_likelihood(self, z: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """The mean log-likelihood of an observation, with the weights normalised."""
        weights = z[:, : self.components]
        return self._joint(z).logsumexp(1).mean(1) - weights.logsumexp(1)

    def reference(self) -> Float[Tensor, "B D"]:
        """The fixed point that Newton's method finds from the state after 300 iterations of EM."""
        return newton(self, picard(self, 300))

    def checks(self, z: Float[Tensor, "B D"]) -> dict[str, Float[Tensor, " B"]]:
        """The norm of the gradient of the mean log-likelihood."""
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_likelihood(at).sum(), at)
        return {"gradient_norm": row_norms(gradient)}

    def _joint(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B K n"]:
        """``log pi_k + log N(x_i; m_k, v_k)``."""
        size = self.data.shape[1]
        weights, means, variances = z.split([self.components, self.components * size, self.components * size], dim=1)
        means, variances = (part.reshape(-1, self.components, size, 1) for part in (means, variances))
        distance = (self.data.unsqueeze(1) - means).square() / variances.exp() + variances + math.log(2 * math.pi)
        # Summed one dimension at a time, so that the order does not depend on the batch: the dimensions are few and not
        # the last of the tensor.
        total = distance[:, :, 0]
        for axis in range(1, size):
            total = total + distance[:, :, axis]
        logarithms: Tensor = weights.unsqueeze(2) - total / 2
        return logarithms


@dataclass(frozen=True)
class GaussianMixtureEM(RandomTask):
    """EM of a Gaussian mixture on random data, from perturbed true centres and unit variances."""

    components: int = option(3, ge=1, help="K")
    dimension: int = option(2, ge=1, help="d: dimension of an observation")
    samples: int = option(500, ge=10, help="number of observations")
    separation: float = option(
        3.0, gt=0.0, help="distance of neighbouring centres, in standard deviations; hard below 2"
    )

    def draw(self, generator: torch.Generator) -> GaussianMixtureProblem:
        count, size = self.components, self.dimension
        # The centres lie on a line in a random direction, so that the distance of neighbours is exactly ``separation``
        # in every dimension.
        line = torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")
        places = self.separation * (torch.arange(count, dtype=torch.float64, device="cpu") - (count - 1) / 2)
        centres = places.unsqueeze(1) * line / line.norm()
        label = torch.randint(count, (self.samples,), generator=generator, device="cpu")
        points = centres[label] + torch.randn(
            self.samples, size, generator=generator, dtype=torch.float64, device="cpu"
        )
        means = centres + 0.3 * torch.randn(count, size, generator=generator, dtype=torch.float64, device="cpu")
        weights = torch.full((count,), -math.log(count), dtype=torch.float64, device="cpu")
        start = torch.cat((weights, means.flatten(), torch.zeros(count * size, dtype=torch.float64, device="cpu")))
        return GaussianMixtureProblem(start.unsqueeze(0), points.T.unsqueeze(0).contiguous(), count)
