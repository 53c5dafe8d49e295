r"""Extrapolation to later states of a DDIM chain from the result of one step.

The clean image ``x0`` and the noise ``eps`` used by the step from ``x = x_i`` to ``Phi_i(x)`` can be recovered from
these two states. With ``b = sqrt(ab)`` and ``s = sqrt(1 - ab)`` at the timestep of the step, and ``a``, ``d``,
``sigma`` of the step, they solve

    b x0 + s eps = x,    a x0 + d eps = Phi_i(x) - sigma n

a system of determinant ``b d - s a``. The one jump to state ``m`` (``fixedpoint_diffusion.samplers.jumps``) then is
``a_m x0 + d_m eps + e_m``, where

    a_m = h_m + q (b - h_i),    d_m = q s,    e_m = E_m - q E_i,    q = r_i r_{i+1} ... r_{m-1}

Here ``h`` and ``E`` are the image weight and the accumulated noise of the one jump from state 0. Both satisfy a linear
recurrence that multiplies a deviation by ``r`` in every step. So the jump for any ``i`` and ``m`` is computed from
numbers stored for ``i`` and for ``m``: ``q`` is a quotient of running products of ``r``, or zero if a zero lies in
between. ``r`` is zero in the last step of a chain that ends without noise, and for eta = 1 in a step from zero terminal
SNR.

A step between equal noise levels has determinant zero and does not determine the pair. Later states are then
``Phi_i(x)`` itself, plus the noise that accumulates after it.
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
    """The numbers stored for every step and every state of a chain; ``M = N + 1`` states, the start included.

    Attributes
    ----------
    before
        ``b`` and ``s`` of every step, shape ``(2, N)``, float64.
    after
        ``a`` and ``d`` of every step, shape ``(2, N)``, float64.
    sigma
        Scale of the noise of every step, shape ``(N,)``, float64.
    image
        ``h`` of every state, shape ``(M,)``, float64.
    product, zeros
        For every state, shape ``(M,)``: the product of the nonzero ``r`` before it, float64, and the number of zeros
        among the ``r`` before it, int64.
    noise, arrived
        ``n`` and ``E`` of every row and step, shape ``(B, N, *event)``, in the dtype of ``n``; None for a chain without
        noise.
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
        """The extension of a chain with these steps and this noise, on a device."""
        before = torch.stack([steps.signal.sqrt(), (1 - steps.signal).sqrt()])
        after = torch.stack([steps.x0_weight, steps.direction])
        decay = steps.decay
        # Zeros are counted and left out of the product: a quotient of products that contain them would be 0 / 0.
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
        """State ``target`` by one jump from state ``index``, computed in float64 and returned in the dtype of ``x``.

        The arguments are those of ``DDIMChain.extend``.
        """
        along = (-1, *[1] * (x.ndim - 1))
        of_x, of_value, carried = (weight.view(along) for weight in self.weights(index, target))
        state = of_x * x.double() + of_value * value.double()
        if self.noise is not None and self.arrived is not None:
            # ``value`` contains the noise of its own step, which is not part of the two equations.
            fresh = self.sigma[index].view(along) * self._noise(self.noise, row, index, x)
            earlier = self._noise(self.arrived, row, (index - 1).clamp(min=0), x)
            earlier = torch.where((index > 0).view(along), carried * earlier, 0.0)
            state = state + (self._noise(self.arrived, row, target - 1, x) - earlier) - of_value * fresh
        return state.to(x.dtype)

    def weights(self, index: Int[Tensor, " P"], target: Int[Tensor, " P"]) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of ``x`` and of ``value`` in state ``target``, and ``q``; each of shape ``(P,)``, float64."""
        (b, s), (a, d) = self.before[:, index], self.after[:, index]
        through = self.zeros[target] == self.zeros[index]
        carried = torch.where(through, self.product[target] / self.product[index], 0.0)
        image = self.image[target] + carried * (b - self.image[index])
        direction = carried * s
        determinant = b * d - s * a
        # The next state is ``value`` itself, bit for bit.
        given = (target == index + 1) | (determinant == 0)
        of_x = torch.where(given, 0.0, (image * d - direction * a) / determinant)
        of_value = torch.where(given, 1.0, (direction * b - image * s) / determinant)
        return of_x, of_value, carried

    @staticmethod
    def _noise(noise: Tensor, row: Tensor, step: Tensor, x: Tensor) -> Tensor:
        return noise[row, step].to(x.device, torch.float64)
