r"""Several DDIM steps in one, the clean image predicted at the first of them kept.

A step makes of a state ``x``, with the clean image ``x0`` and the noise ``eps`` predicted there,

    x' = a x0 + d eps + sigma n,    a = sqrt(ab'),  d = sqrt(1 - ab' - sigma^2)

(Song, Meng & Ermon 2021, eq. 12). While ``x0`` stays, the next step finds ``eps`` by ``eps = (x - b x0) / s`` with
``b = sqrt(ab)``, ``s = sqrt(1 - ab)`` of its own timestep. So ``x = a x0 + d eps + e`` stays of that form, with

    a <- a' + r (a - b),    d <- r d,    e <- r e + sigma n,    r = d' / s

where the primed ones are the step's. For eta = 0 that is the DDIM step between the two noise levels, for eta = 1 the
DDPM posterior; ``e`` is the noise of the steps jumped over as it arrives. The other choice, to keep ``eps``, would
add that noise up undiminished: a model subtracts what it sees of it, and only a fixed ``x0`` says so. It also needs
no division by ``sqrt(ab)``, which is zero at zero terminal SNR.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["StepCoefficients"]


@dataclass(frozen=True)
class StepCoefficients:
    """``N`` steps from states of signal share ``ab`` to ``x0_weight x0 + direction eps + sigma n``, float64.

    Attributes
    ----------
    timestep
        Int64: the training timestep at which the model is evaluated.
    signal
        ``ab`` there.
    x0_weight, direction, sigma
        The coefficients.
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
        """The steps of a DDIM chain from ``signal`` to ``later``."""
        sigma = eta * ((1 - later) / (1 - signal) * (1 - signal / later)).sqrt()
        direction = (1 - later - sigma**2).clamp(min=0.0).sqrt()
        return cls(timestep, signal, later.sqrt(), direction, sigma)

    def jumps(self, kept: Int[Tensor, " n"]) -> StepCoefficients:
        """The jumps from state 0 to ``kept[0]``, from there to ``kept[1]`` and so on.

        Their noise is what :meth:`arriving` says, ``sigma`` included: theirs is 1 where any step has noise.
        """
        starts = torch.cat([kept.new_zeros(1), kept[:-1]])
        ends = [self._carried(*jump)[:, -1] for jump in zip(starts.tolist(), kept.tolist(), strict=True)]
        return self._of(starts, torch.stack(ends, dim=1))

    def from_start(self) -> StepCoefficients:
        """The one jump from state 0 to every state, as :meth:`jumps` has them."""
        count = len(self.signal)
        return self._of(torch.zeros(count, dtype=torch.int64), self._carried(0, count))

    def arriving(self, noise: Float[Tensor, "B N *event"], kept: Int[Tensor, " n"]) -> Float[Tensor, "B N *event"]:
        """``e`` at every state: the noise added since the last state that was kept, as it has arrived there."""
        restart = set(kept.tolist())
        arrived: list[Tensor] = []
        for i, (decay, sigma) in enumerate(zip(self.decay.tolist(), self.sigma.tolist(), strict=True)):
            fresh = sigma * noise[:, i]
            arrived.append(fresh if i == 0 or i in restart else fresh + decay * arrived[-1])
        return torch.stack(arrived, dim=1)

    def blend(self, kept: Int[Tensor, " n"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """The shares in every state of the kept states around it, the one before and the one after (or the state).

        Two states say what clean image, and what noise, a jump from the one to the other would have had; the states
        between are those of that jump. For eta = 0 that makes ``x / sqrt(ab)`` linear in ``sqrt(1 / ab - 1)``.
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
        """The slope of every step where the data is one Gaussian of this variance, float64.

        With ``D = ab v + 1 - ab`` the clean image and the noise expected of a state have the slopes ``sqrt(ab) v / D``
        and ``sqrt(1 - ab) / D`` in it, whichever of them, or of their combinations, a model predicts.
        """
        spread = self.signal * variance + 1 - self.signal
        image, noise = self.signal.sqrt() * variance / spread, (1 - self.signal).sqrt() / spread
        return self.x0_weight * image + self.direction * noise

    @property
    def decay(self) -> Float[Tensor, " N"]:
        """``r``: what is left after a step of a deviation before it."""
        return self.direction / (1 - self.signal).sqrt()

    def _carried(self, start: int, end: int) -> Float[Tensor, "2 k"]:
        """Image and direction at the states ``start + 1 .. end``, from state ``start``."""
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
        sigma = (self.sigma > 0).any().double().expand(len(starts))
        return StepCoefficients(self.timestep[starts], self.signal[starts], image, direction, sigma)
