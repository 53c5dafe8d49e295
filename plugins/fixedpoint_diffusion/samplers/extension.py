r"""Later states of a DDIM chain from one step that was taken.

The step from state ``i``, ``x``, to ``Phi_i(x)`` has used a clean image and a noise: with ``b = sqrt(ab)``,
``s = sqrt(1 - ab)`` of its timestep and ``a``, ``d``, ``sigma`` of the step,

    b x0 + s eps = x,    a x0 + d eps = Phi_i(x) - sigma n

two equations of determinant ``b d - s a``. With them the one jump to state ``m``
(``fixedpoint_diffusion.samplers.jumps``) is ``a_m x0 + d_m eps + e_m``, where

    a_m = h_m + q (b - h_i),    d_m = q s,    e_m = E_m - q E_i,    q = r_i r_{i+1} ... r_{m-1}

and ``h``, ``E`` are the image and the noise of the one jump from state 0, both solutions of a recurrence that loses by
``r`` a step what they deviate by. So every pair follows from what is kept of ``i`` and of ``m``: ``q`` is the quotient
of running products of ``r``, or zero where a zero lies between. ``r`` vanishes at the end of a chain that ends without
noise, and for eta = 1 in a step from zero terminal SNR.

A step between equal noise levels has no determinant and says nothing: then later states are ``Phi_i(x)`` itself, but
for the noise that arrives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint_diffusion.samplers.jumps import StepCoefficients

__all__ = ["Extension"]


@dataclass(frozen=True, eq=False)
class Extension:
    """What is kept of every step and of every state of a chain, float64.

    Attributes
    ----------
    before
        ``b`` and ``s`` of every step.
    after
        ``a`` and ``d``.
    sigma
        Its noise.
    image
        ``h`` of every state, the start included.
    product, zeros
        Running product of the ``r`` that are not zero, and the number of zeros, up to every state.
    noise, arrived
        ``n`` and ``E`` of every row and step, in the dtype of ``n``; None for a chain without noise.
    """

    before: Float[Tensor, "2 N"]
    after: Float[Tensor, "2 N"]
    sigma: Float[Tensor, " N"]
    image: Float[Tensor, " M"]
    product: Float[Tensor, " M"]
    zeros: Int[Tensor, " M"]
    noise: Float[Tensor, "B N *event"] | None
    arrived: Float[Tensor, "B N *event"] | None

    @classmethod
    def of(cls, steps: StepCoefficients, noise: Float[Tensor, "B N *event"] | None, device: torch.device) -> Extension:
        """Of the steps of a chain."""
        before = torch.stack([steps.signal.sqrt(), (1 - steps.signal).sqrt()])
        after = torch.stack([steps.x0_weight, steps.direction])
        decay = steps.decay
        product = torch.where(decay == 0, 1.0, decay).cumprod(0)
        return cls(
            before.to(device),
            after.to(device),
            steps.sigma.to(device),
            torch.cat([before[0, :1], steps.from_start().x0_weight]).to(device),
            torch.cat([torch.ones_like(product[:1]), product]).to(device),
            torch.cat([torch.zeros(1, dtype=torch.int64), (decay == 0).cumsum(0)]).to(device),
            noise,
            None if noise is None else steps.arriving(noise, torch.tensor([len(decay)])),
        )

    def __call__(
        self,
        x: Float[Tensor, "P *event"],
        value: Float[Tensor, "P *event"],
        index: Int[Tensor, " P"],
        target: Int[Tensor, " P"],
        row: Int[Tensor, " P"],
    ) -> Float[Tensor, "P *event"]:
        """State ``target`` as the one jump from state ``index``; combined in float64, then of the dtype of ``x``."""
        along = (-1, *[1] * (x.ndim - 1))
        of_x, of_value, carried = (weight.view(along) for weight in self.weights(index, target))
        state = of_x * x.double() + of_value * value.double()
        if self.noise is not None and self.arrived is not None:
            fresh = self.sigma[index].view(along) * self._noise(self.noise, row, index, x)
            earlier = self._noise(self.arrived, row, (index - 1).clamp(min=0), x)
            earlier = torch.where((index > 0).view(along), carried * earlier, 0.0)
            state = state + (self._noise(self.arrived, row, target - 1, x) - earlier) - of_value * fresh
        return state.to(x.dtype)

    def weights(self, index: Int[Tensor, " P"], target: Int[Tensor, " P"]) -> tuple[Tensor, Tensor, Tensor]:
        """The shares in state ``target`` of state ``index`` and of what its step made of it, and ``q``; float64."""
        (b, s), (a, d) = self.before[:, index], self.after[:, index]
        through = self.zeros[target] == self.zeros[index]
        carried = torch.where(through, self.product[target] / self.product[index], 0.0)
        image = self.image[target] + carried * (b - self.image[index])
        direction = carried * s
        determinant = b * d - s * a
        given = (target == index + 1) | (determinant == 0)
        of_x = torch.where(given, 0.0, (image * d - direction * a) / determinant)
        of_value = torch.where(given, 1.0, (direction * b - image * s) / determinant)
        return of_x, of_value, carried

    @staticmethod
    def _noise(noise: Tensor, row: Tensor, step: Tensor, x: Tensor) -> Tensor:
        return noise[row, step].to(x.device, torch.float64)
