r"""The exact denoiser of a Gaussian mixture, with which chains can be tested against closed forms.

For data ``x0 ~ sum_k w_k N(mu_k, v_k I)`` the noisy marginal is ``x ~ sum_k w_k N(sqrt(ab) mu_k, s_k I)`` with
``s_k = ab v_k + 1 - ab``. With the posterior weights ``r_k`` of the components given ``x``,

    E[eps | x] = sqrt(1 - ab) sum_k r_k (x - sqrt(ab) mu_k) / s_k
    E[x0 | x]  = sum_k r_k ((1 - ab) mu_k + sqrt(ab) v_k x) / s_k
    E[v | x]   = sqrt(ab) E[eps | x] - sqrt(1 - ab) E[x0 | x]

All operations are elementwise or sum along one row, one component after another. The result for a state is therefore
the same bit for bit whatever batch the state is evaluated in.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fixedpoint.core.reduce import row_dots
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.schedules.schedule import PredictionType
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule

__all__ = ["GaussianMixture"]


class _Tables(NamedTuple):
    """``ab`` of all timesteps, and means, variances and logarithms of the weights of the components; float64."""

    signal: Float[Tensor, " T"]
    means: Float[Tensor, "K d"]
    variances: Float[Tensor, " K"]
    logs: Float[Tensor, " K"]


class GaussianMixture(Denoiser):
    """The exact denoiser of a mixture of isotropic Gaussians.

    Parameters
    ----------
    means
        Means of the components, shape ``(K, *event)``.
    variances
        Variances of the components, shape ``(K,)``, positive.
    weights
        Weights of the components, shape ``(K,)``, positive. They are normalised to sum 1.
    schedule
        The noise schedule. Its ``prediction_type`` determines what is predicted.

    Raises
    ------
    ValueError
        If ``variances`` or ``weights`` have another shape or are not all positive.
    """

    def __init__(
        self,
        means: Float[Tensor, "K *event"],
        variances: Float[Tensor, " K"],
        weights: Float[Tensor, " K"],
        schedule: DDIMSchedule,
    ) -> None:
        count = means.shape[0]
        for name, values in (("variances", variances), ("weights", weights)):
            if tuple(values.shape) != (count,) or not bool((values > 0).all()):
                raise ValueError(f"{name} must be {count} positive numbers, got {values.tolist()}")
        self.means = means.double()
        self.variances = variances.double()
        self.weights = weights.double() / weights.double().sum()
        self.schedule = schedule
        self._placed: dict[torch.device, _Tables] = {}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.means.shape[1:])

    def predict(
        self, x: Float[Tensor, "P *event"], timestep: Shaped[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        kind: PredictionType = self.schedule.prediction_type
        tables = self._on(x.device)
        signal, variances = _at(tables.signal, timestep).unsqueeze(1), tables.variances
        states, means = x.flatten(1), tables.means.to(x.dtype)
        spread = signal * variances + (1 - signal)
        share = self._posterior(states, signal, spread, means) / spread
        # Every prediction is a combination of the state and of sum_k r_k / s_k mu_k, with weights that are sums of
        # scalars.
        centre = _combination(share, means)
        a, s = signal.sqrt(), (1 - signal).sqrt()
        noise = s.to(x) * (share.sum(1, keepdim=True).to(x) * states - a.to(x) * centre)
        if kind == "epsilon":
            return noise.reshape(x.shape)
        gain = (a * (share * variances).sum(1, keepdim=True)).to(x)
        image = (1 - signal).to(x) * centre + gain * states
        if kind == "sample":
            return image.reshape(x.shape)
        return (a.to(x) * noise - s.to(x) * image).reshape(x.shape)

    def quick_batch(self, device: torch.device) -> int | None:
        """On a CPU 1024 images, so that they stay in the cache; elsewhere no limit."""
        return 1024 if device.type == "cpu" else None

    def _on(self, device: torch.device) -> _Tables:
        """The tables on a device, copied there once."""
        if device not in self._placed:
            made = (self.schedule.alphas_cumprod, self.means.flatten(1), self.variances, self.weights.log())
            self._placed[device] = _Tables(*(values.to(device) for values in made))
        return self._placed[device]

    def _posterior(self, states: Tensor, signal: Tensor, spread: Tensor, means: Tensor) -> Float[Tensor, "P K"]:
        """The posterior weights ``r_k`` of the components given each state, float64."""
        root = signal.sqrt().to(states)
        distances = []
        # One component at a time, by ``row_dots``, so that the sums do not depend on the batch.
        for mean in means:
            offset = states - root * mean
            distances.append(row_dots(offset.unsqueeze(1), offset))
        squares = torch.cat(distances, dim=1)
        size = states.shape[1]
        logits = self._on(states.device).logs - 0.5 * size * spread.log() - 0.5 * squares / spread
        # Subtracting the largest logit avoids overflow of the exponential.
        shifted = (logits - logits.amax(1, keepdim=True)).exp()
        return shifted / shifted.sum(1, keepdim=True)


def _at(signal: Float[Tensor, " T"], timestep: Shaped[Tensor, " P"]) -> Float[Tensor, " P"]:
    """``ab`` at the timesteps; between two of the training, the ratio of noise to signal is interpolated in its
    logarithm, as the schedulers of diffusers do that place timesteps there.
    """
    if not timestep.is_floating_point():
        return signal[timestep]
    below = timestep.double().floor().clamp(0, len(signal) - 1)
    share = (timestep.double() - below).clamp(min=0.0)
    first = below.long()
    ratio = ((1 - signal) / signal).log()
    between = ratio[first] + share * (ratio[(first + 1).clamp(max=len(signal) - 1)] - ratio[first])
    # Without a fraction the value of the table itself, which may be 0.
    return torch.where(share == 0, signal[first], torch.sigmoid(-between))


def _combination(weights: Float[Tensor, "P K"], means: Float[Tensor, "K d"]) -> Float[Tensor, "P d"]:
    """``weights @ means``, summed in a fixed order: the rounding of a matrix product may depend on the batch."""
    weights = weights.to(means.dtype)
    total = weights[:, :1] * means[0]
    for k in range(1, len(means)):
        total = torch.addcmul(total, weights[:, k : k + 1], means[k])
    return total
