r"""Jumps: several DDIM steps in one, with the clean image held at the prediction of the first step.

With the clean image ``x0`` and the noise ``eps`` predicted at a state ``x``, a step is

    x' = a x0 + d eps + sigma n,    a = sqrt(ab'),  d = sqrt(1 - ab' - sigma^2)

(Song, Meng & Ermon 2021, eq. 12). If ``x0`` is held, the next step has ``eps = (x - b x0) / s`` with ``b = sqrt(ab)``
and ``s = sqrt(1 - ab)`` of its own timestep. So every state keeps the form ``x = a x0 + d eps + e``, with

    a <- a' + r (a - b),    d <- r d,    e <- r e + sigma n,    r = d' / s

where the primed coefficients are those of the step. For eta = 0 this is the DDIM step between the two noise levels, for
eta = 1 the DDPM posterior; ``e`` is the accumulated noise of the steps of the jump. The alternative, holding ``eps``,
would add up that noise without damping it. The model, however, predicts the added noise and removes part of it in every
step, which the recurrence with a fixed ``x0`` reproduces. Holding ``x0`` also avoids a division by ``sqrt(ab)``, which
is zero at zero terminal SNR.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["StepCoefficients"]


@dataclass(frozen=True)
class StepCoefficients:
    """The coefficients of ``N`` steps or jumps ``x' = x0_weight x0 + direction eps + sigma n``; each of shape ``(N,)``.

    Attributes
    ----------
    timestep
        The training timestep at which the model is evaluated, int64.
    signal
        The share of signal ``ab`` at that timestep, from 0 to 1, float64.
    x0_weight, direction, sigma
        The weights of the clean image, the predicted noise and the added noise, float64.
    """

    timestep: Int[Tensor, " N"]
    signal: Float[Tensor, " N"]
    x0_weight: Float[Tensor, " N"]
    direction: Float[Tensor, " N"]
    sigma: Float[Tensor, " N"]

    @classmethod
    def ddim(
        cls, timestep: Int[Tensor, " N"], signal: Float[Tensor, " N"], later: Float[Tensor, " N"], eta: float
    ) -> StepCoefficients:
        """The steps of a DDIM chain from shares of signal ``signal`` to ``later``."""
        sigma = eta * ((1 - later) / (1 - signal) * (1 - signal / later)).sqrt()
        # For eta = 1 at zero terminal SNR the difference is zero, and rounding may make it negative.
        direction = (1 - later - sigma**2).clamp(min=0.0).sqrt()
        return cls(timestep, signal, later.sqrt(), direction, sigma)

    def jumps(self, kept: Int[Tensor, " n"]) -> StepCoefficients:
        """The jumps from state 0 to ``kept[0]``, from there to ``kept[1]`` and so on.

        Their noise is that of :meth:`arriving`, which contains ``sigma`` already. Their own ``sigma`` is therefore 1 if
        any step has noise, else 0.
        """
        starts = torch.cat([kept.new_zeros(1), kept[:-1]])
        ends = [self._carried(*jump)[:, -1] for jump in zip(starts.tolist(), kept.tolist(), strict=True)]
        return self._of(starts, torch.stack(ends, dim=1))

    def from_start(self) -> StepCoefficients:
        """The jumps from state 0 to each of the states 1 to ``N``, with ``sigma`` as in :meth:`jumps`."""
        count = len(self.signal)
        return self._of(torch.zeros(count, dtype=torch.int64), self._carried(0, count))

    def arriving(self, noise: Float[Tensor, "B N *event"], kept: Int[Tensor, " n"]) -> Float[Tensor, "B N *event"]:
        """``e`` at the states 1 to ``N``: the noise accumulated since the last state of ``kept`` before each."""
        restart = set(kept.tolist())
        arrived: list[Tensor] = []
        for i, (decay, sigma) in enumerate(zip(self.decay.tolist(), self.sigma.tolist(), strict=True)):
            fresh = sigma * noise[:, i]
            arrived.append(fresh if i == 0 or i in restart else fresh + decay * arrived[-1])
        return torch.stack(arrived, dim=1)

    def blend(self, kept: Int[Tensor, " n"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """The weights in every state of the kept state before it and of the kept state after it.

        A kept state has weight 1 on itself. Two neighbouring kept states determine the clean image and the noise of the
        jump from one to the other; the states between them are those of that jump. For eta = 0 this makes
        ``x / sqrt(ab)`` linear in ``sqrt(1 / ab - 1)``.
        """
        first, last = torch.zeros_like(self.x0_weight), torch.ones_like(self.x0_weight)
        start = 0
        for end in kept.tolist():
            image, direction = self._carried(start, end)
            left = direction / (1 - self.signal[start]).sqrt()
            gained = image - left * self.signal[start].sqrt()
            inside = slice(start, end - 1)
            last[inside] = gained[:-1] / gained[-1]
            first[inside] = left[:-1] - last[inside] * left[-1]
            start = end
        return first, last

    def gaussian_slopes(self, variance: float) -> Float[Tensor, " N"]:
        """The slope of every step for data from one Gaussian of variance ``v``, float64.

        With ``D = ab v + 1 - ab``, the expected clean image and the expected noise given a state have the slopes
        ``sqrt(ab) v / D`` and ``sqrt(1 - ab) / D``. This holds for every prediction type.
        """
        spread = self.signal * variance + 1 - self.signal
        image, noise = self.signal.sqrt() * variance / spread, (1 - self.signal).sqrt() / spread
        return self.x0_weight * image + self.direction * noise

    @property
    def decay(self) -> Float[Tensor, " N"]:
        """``r``: the factor by which a step, with the clean image held, multiplies a deviation of its state."""
        return self.direction / (1 - self.signal).sqrt()

    def _carried(self, start: int, end: int) -> Float[Tensor, "2 k"]:
        """``a`` and ``d`` of the jumps from state ``start`` to each of the states ``start + 1 .. end``."""
        # A sequential recurrence of single numbers, in Python floats, which are float64 like the tensors.
        image, direction, decay, own = (
            values[start:end].tolist() for values in (self.x0_weight, self.direction, self.decay, self.signal.sqrt())
        )
        carried = [(image[0], direction[0])]
        for i in range(1, end - start):
            a, d = carried[-1]
            carried.append((image[i] + decay[i] * (a - own[i]), decay[i] * d))
        return torch.tensor(carried, dtype=torch.float64).T

    def _of(self, starts: Int[Tensor, " n"], carried: Float[Tensor, "2 n"]) -> StepCoefficients:
        image, direction = carried
        # The noise of ``arriving`` is scaled already.
        sigma = (self.sigma > 0).any().double().expand(len(starts))
        return StepCoefficients(self.timestep[starts], self.signal[starts], image, direction, sigma)
