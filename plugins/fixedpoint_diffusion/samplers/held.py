r"""Steps of a sampler with the clean image held: the numbers from which jumps, coarse chains and extensions follow.

A memoryless step takes its state ``u``, the clean image ``D`` that the network predicts there, and noise:

    u_{j+1} = alpha_j u_j + beta_j D_j + noise_j

If ``D`` is held from state ``i`` on, every later state keeps this form, and is one *jump* from there:

    u_m = A_im u_i + (H_m - A_im H_i) D + (E_m - A_im E_i)

``A_im`` is the product of ``alpha`` over the steps ``i .. m-1``. ``H`` and ``E`` begin with 0 and follow the recurrence
of the states, ``H_{j+1} = alpha_j H_j + beta_j`` and ``E_{j+1} = alpha_j E_j + noise_j``. So the jump for any ``i`` and
``m`` is computed from numbers stored for ``i`` and for ``m``: ``A_im`` is a quotient of running products, or zero if a
zero lies in between.

For DDIM (Song, Meng & Ermon 2021, eq. 12), where ``x' = a D + d eps + sigma n`` at a share of signal ``ab``,

    alpha = d / sqrt(1 - ab),    beta = a - alpha sqrt(ab)

and the jump is the DDIM step between the two noise levels for eta = 0, the DDPM posterior for eta = 1. Holding the
noise instead of the clean image would add up the noise of the steps without damping it. The model, however, predicts
the added noise and removes part of it in every step, as the recurrence with ``D`` held does. It also avoids a division
by ``sqrt(ab)``, which is zero at zero terminal SNR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["HeldSteps"]

# The size of a coefficient of the clean image, relative to an image, below which it is rounding: such a step does not
# determine the image.
_NOTHING = 1e-12


@dataclass(frozen=True, eq=False)
class HeldSteps:
    """The coefficients of ``N`` steps or jumps, and their running sums and products up to each of the ``N + 1`` states.

    Attributes
    ----------
    keep, gain
        ``alpha`` and ``beta``, shape ``(N,)``, float64.
    product, exponent, zeros
        The product of the nonzero ``alpha`` before each state is ``product * 2**exponent``, so that it cannot
        underflow; float64 and int64. ``zeros`` is the number of zeros among the ``alpha`` before it, int64. Shape
        ``(N + 1,)``.
    image
        ``H``, shape ``(N + 1,)``, float64.
    """

    keep: Float[Tensor, " N"]
    gain: Float[Tensor, " N"]
    product: Float[Tensor, " N+1"]
    exponent: Int[Tensor, " N+1"]
    zeros: Int[Tensor, " N+1"]
    image: Float[Tensor, " N+1"]

    @classmethod
    def of(cls, keep: Float[Tensor, " N"], gain: Float[Tensor, " N"]) -> HeldSteps:
        """The steps of given coefficients; all tensors are on the CPU."""
        product, exponent, zeros, image = [1.0], [0], [0], [0.0]
        # A sequential recurrence of single numbers, in Python floats, which are float64 like the tensors.
        for alpha, beta in zip(keep.tolist(), gain.tolist(), strict=True):
            # Zeros are counted and left out of the product: a quotient of products that contain them would be 0 / 0.
            part, power = math.frexp(product[-1] * (alpha or 1.0))
            product.append(part)
            exponent.append(exponent[-1] + power)
            zeros.append(zeros[-1] + (alpha == 0.0))
            image.append(alpha * image[-1] + beta)
        running, weights = (torch.tensor(each, dtype=torch.float64, device="cpu") for each in (product, image))
        return cls(
            keep, gain, running, torch.tensor(exponent, device="cpu"), torch.tensor(zeros, device="cpu"), weights
        )

    def to(self, device: torch.device) -> HeldSteps:
        """The same numbers on a device."""
        parts = (self.keep, self.gain, self.product, self.exponent, self.zeros, self.image)
        return HeldSteps(*(part.to(device) for part in parts))

    def jump(self, start: Int[Tensor, " n"], end: Int[Tensor, " n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """The coefficients of state ``start`` and of the clean image in state ``end``, float64."""
        through = self.zeros[end] == self.zeros[start]
        power = torch.exp2((self.exponent[end] - self.exponent[start]).double())
        kept = torch.where(through, self.product[end] / self.product[start] * power, 0.0)
        return kept, self.image[end] - kept * self.image[start]

    def blend(self, kept: Int[Tensor, " n"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """The weights in the states ``1 .. N`` of the kept state before each and of the kept state after it.

        Two neighbouring kept states determine the clean image of the jump from one to the other; the states between
        them are those of that jump. Where they do not determine it, the later one has no weight.
        """
        state = torch.arange(1, len(self.keep) + 1, device="cpu")
        place = torch.searchsorted(kept, state)
        before = torch.cat([kept.new_zeros(1), kept])[place]
        (here, gained), (there, whole) = self.jump(before, state), self.jump(before, kept[place])
        last = torch.where(whole.abs() <= _NOTHING, 0.0, gained / whole)
        return here - last * there, last

    def extension(self, index: Int[Tensor, " P"], target: Int[Tensor, " P"]) -> tuple[Tensor, Tensor, Tensor]:
        """The weights of state ``index`` and of its step's result in state ``target``, and ``A``; float64.

        The clean image follows from the two. A step that does not determine it leads to its own result, whatever the
        target; so does a jump of one step, bit for bit.
        """
        carried, gained = self.jump(index, target)
        unknown = (target == index + 1) | (self.gain[index].abs() <= _NOTHING)
        of_value = torch.where(unknown, 1.0, gained / self.gain[index])
        return torch.where(unknown, 0.0, carried - of_value * self.keep[index]), of_value, carried

    def accumulated(
        self, noise: list[Float[Tensor, "B *event"]], kept: Int[Tensor, " n"]
    ) -> Float[Tensor, "B N *event"]:
        """``E`` at the states ``1 .. N``, from the noise of each step, counted anew after each of ``kept``."""
        restart, reached = set(kept.tolist()), list[Tensor]()
        for i, (alpha, fresh) in enumerate(zip(self.keep.tolist(), noise, strict=True)):
            reached.append(fresh if i == 0 or i in restart else fresh + alpha * reached[-1])
        return torch.stack(reached, dim=1)
