"""Chains of samplers without memory: their steps, and all that follows from holding the clean image."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fixedpoint.chains.capabilities import HasGaussianSlopes, HasNoInverse, HasSampleFactors
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.coarse import HasCoarse, HasExtension, HasJumps, check_kept
from fixedpoint.chains.planning.costs import HasCostKey
from fixedpoint.core.problem import AbilityError
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.samplers.held import HeldSteps
from fixedpoint_diffusion.samplers.levels import NoiseLevels
from fixedpoint_diffusion.samplers.noise import AddedNoise

__all__ = ["MemorylessChain", "predicted"]


class MemorylessChain(
    Chain, HasCoarse, HasJumps, HasExtension, HasGaussianSlopes, HasNoInverse, HasSampleFactors, HasCostKey
):
    """A chain of steps ``u_{j+1} = a_j u_j + b_j m_j + noise_j`` with the raw outputs ``m_j`` of a network.

    What an output implies, ``D_j = clean_input_j u_j + clean_output_j m_j``, is held over the steps of a jump: see
    ``fixedpoint_diffusion.samplers.held``.

    Parameters
    ----------
    denoiser
        The network.
    timesteps
        The timestep of each step, shape ``(N,)``; passed to the denoiser in this dtype.
    steps
        ``alpha`` and ``beta`` of each step, for the clean image that the levels define.
    clean
        ``clean_input`` and ``clean_output``, shape ``(N,)``, float64.
    levels
        The noise levels; None where they are not known, and gaussian slopes are refused.
    added
        The noise that the steps add; None: none.

    factors
        The numbers by which the states have to be multiplied to give the scheduler's own, shape ``(N,)``, float64; None
        if they are not known.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        timesteps: Shaped[Tensor, " N"],
        steps: HeldSteps,
        clean: tuple[Float[Tensor, " N"], Float[Tensor, " N"]],
        levels: NoiseLevels | None,
        added: AddedNoise | None,
        factors: Float[Tensor, " N"] | None,
    ) -> None:
        self.denoiser, self.timesteps, self.length = denoiser, timesteps, len(timesteps)
        self.steps, self.clean, self.levels, self.factors = steps, clean, levels, factors
        self._hold(added)

    def _hold(self, added: AddedNoise | None) -> None:
        self.added = added
        self._tables: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
        # The steps and their accumulated noise on a device, made when ``extend`` is first called there.
        self._extensions: dict[torch.device, tuple[HeldSteps, Tensor | None]] = {}

    @property
    def noise(self) -> Float[Tensor, "B M *event"] | None:
        """The draws of noise of every row; None for a chain without noise."""
        return None if self.added is None else self.added.noise

    def with_noise(self, noise: Float[Tensor, "B M *event"]) -> Self:
        """The same chain with other draws of noise."""
        if self.added is None:
            raise ValueError("the chain adds no noise")
        chain = copy.copy(self)
        chain._hold(AddedNoise(noise, self.added.draws, self.added.scales))
        return chain

    def cost_key(self) -> tuple[object, Hashable]:
        """The key of the denoiser: chains of the same network take the same time per step."""
        return self.denoiser.cost_key()

    def sample_factors(self) -> Float[Tensor, " N"] | None:
        """The numbers by which the states have to be multiplied to give the scheduler's own, float64."""
        return self.factors

    def no_inverse(self) -> str | None:
        """Why the chain has no inverse; None if it has one."""
        return None

    def gaussian_slopes(self, variance: float) -> Float[Tensor, " N"]:
        """The slope of each step for data from a single Gaussian, float64; clipping is ignored.

        Raises
        ------
        ValueError
            If ``variance`` is not positive.
        AbilityError
            If the noise levels of the sampler are not known.
        """
        if self.levels is None:
            raise AbilityError("gaussian slopes require noise levels, and those of this sampler are not known")
        return self.steps.keep + self.steps.gain * self.levels.clean_slopes(variance)

    def coarse(self, kept: Int[Tensor, " n"]) -> Self:
        """A coarse chain between some of the states; each jump carries the noise of the steps that it replaces.

        A jump is the result of its steps with the clean image held at the prediction of the first step (see
        ``fixedpoint_diffusion.samplers.held``). For DDIM with eta = 0 it is the step between the two noise levels.

        Parameters
        ----------
        kept
            Numbers of the states to keep, int64: strictly increasing, from 1 to ``N``, ending with ``N``.

        Raises
        ------
        ValueError
            For any other ``kept``.
        """
        kept = check_kept(kept, self.length)
        starts = torch.cat([kept.new_zeros(1), kept[:-1]])
        chain = copy.copy(self)
        chain.length, chain.timesteps = len(kept), self.timesteps[starts]
        chain.steps = HeldSteps.of(*self.steps.jump(starts, kept))
        chain.clean = (self.clean[0][starts], self.clean[1][starts])
        chain.levels = None if self.levels is None else self.levels.at(starts)
        chain.factors = None if self.factors is None else self.factors[kept - 1]
        added = self.added
        if added is not None:
            every = torch.arange(len(added.noise), device=added.noise.device)
            arrived = self.steps.accumulated(added.every(every, added.noise), kept)[:, kept - 1]
            added = AddedNoise.of(arrived, torch.eye(len(kept), dtype=torch.float64, device="cpu"))
        chain._hold(added)
        return chain

    def jumps(self, x0: Float[Tensor, "B *event"], row: Int[Tensor, " B"]) -> Float[Tensor, "B N *event"]:
        """All states, each by one jump from ``x_0``, at one evaluation of the denoiser per row."""
        index = torch.zeros_like(row)
        seen, image = (part.unsqueeze(1) for part in self._mixture(x0, self._prediction(x0, index, row), index))
        end = torch.arange(1, self.length + 1, device="cpu")
        along = (1, -1, *[1] * (x0.ndim - 1))  # broadcasts one weight per state over rows and event
        kept, gained = (weight.to(x0).view(along) for weight in self.steps.jump(torch.zeros_like(end), end))
        states = kept * seen + gained * image
        if self.added is not None:
            # ``kept`` is the last state alone: every jump starts at state 0, so the noise accumulates from there.
            states = states + self.steps.accumulated(
                self.added.every(row, x0), torch.tensor([self.length], device="cpu")
            )
        return states

    def extend(
        self,
        x: Float[Tensor, "P *event"],
        value: Float[Tensor, "P *event"],
        index: Int[Tensor, " P"],
        target: Int[Tensor, " P"],
        row: Int[Tensor, " P"],
    ) -> Float[Tensor, "P *event"]:
        """State ``target`` by one jump from state ``index``, given the result ``value`` of the step from there.

        The jump uses the clean image that is recovered from ``x`` and ``value``. It equals that of :meth:`jumps` and
        :meth:`coarse`, except where the clean image is clipped but the noise is not: ``x`` is then not a mixture of the
        two. A step between equal noise levels does not determine the clean image; later states are then ``value``
        itself, plus the noise that accumulates after it.

        The image is computed from the difference between two neighbouring states, so longer jumps amplify the rounding
        errors of the states. For DDIM in float32 at N = 1000, for jumps from the start, the error relative to the
        target state is at most 1e-3 at state 100, 1e-2 at state 500, and 0.1 at the image, of which the start contains
        little. In float64 it is a hundred-millionth of that.

        Parameters
        ----------
        x, value
            The states and the results of their steps, shape ``(P, *event)``, of the same dtype.
        index
            Number of the step of each pair, 0 to ``N - 1``.
        target
            Number of the state to jump to, ``index + 1`` to ``N``; not checked.
        row
            Row of the batch that each pair belongs to; it selects the noise.

        Returns
        -------
        Tensor
            The target states, shape ``(P, *event)``, computed in float64 and returned in the dtype of ``x``.

        Raises
        ------
        ValueError
            If ``value`` has another shape or dtype than ``x``.
        """
        if value.shape != x.shape or value.dtype != x.dtype:
            raise ValueError(
                f"value must have shape {tuple(x.shape)}, {x.dtype} like x, got {tuple(value.shape)}, {value.dtype}"
            )
        steps, arrived = self._extension(x.device)
        along = (-1, *[1] * (x.ndim - 1))
        of_x, of_value, carried = (weight.view(along) for weight in steps.extension(index, target))
        wide = x.double()
        state = of_x * wide + of_value * value.double()
        if self.added is not None and arrived is not None:
            # ``value`` contains the noise of its own step, which says nothing of the clean image.
            fresh = self.added.at(index, row, wide)
            earlier = arrived[row, (index - 1).clamp(min=0)].to(wide)
            earlier = torch.where((index > 0).view(along), carried * earlier, 0.0)
            state = state + (arrived[row, target - 1].to(wide) - earlier) - of_value * fresh
        return state.to(x.dtype)

    def interpolate(
        self,
        x0: Float[Tensor, "B *event"],
        states: Float[Tensor, "B n *event"],
        kept: Int[Tensor, " n"],
        row: Int[Tensor, " B"],
    ) -> Float[Tensor, "B N *event"]:
        """All states from the kept ones; states in between lie on the jump from one kept state to the next.

        For DDIM with eta = 0, ``x / sqrt(ab)`` is interpolated linearly in ``sqrt(1 / ab - 1)``. Noise that was added
        since the previous kept state is subtracted from the next kept state before the interpolation. Afterwards every
        state gets the noise that has accumulated up to it.

        Parameters
        ----------
        x0
            The first state of every row, shape ``(B, *event)``.
        states
            The kept states, shape ``(B, n, *event)``; they are returned bit for bit.
        kept
            Their numbers, as for :meth:`coarse`.
        row
            Row of the batch that each entry belongs to; it selects the noise.

        Raises
        ------
        ValueError
            If the shape of ``states`` does not fit ``x0`` and ``kept``, or if ``kept`` is not valid.
        """
        kept = check_kept(kept, self.length)
        if states.shape != (len(x0), len(kept), *x0.shape[1:]):
            wanted = (len(x0), len(kept), *x0.shape[1:])
            raise ValueError(f"states must have shape {wanted}, one for each of kept, got {tuple(states.shape)}")
        place = torch.searchsorted(kept, torch.arange(1, self.length + 1, device="cpu"))
        along = (1, -1, *[1] * (x0.ndim - 1))
        first, last = (share.to(x0).view(along) for share in self.steps.blend(kept))
        after = states
        arriving = None if self.added is None else self.steps.accumulated(self.added.every(row, x0), kept)
        if arriving is not None:
            after = states - arriving[:, kept - 1]
        filled = first * torch.cat([x0.unsqueeze(1), states], dim=1)[:, place] + last * after[:, place]
        if arriving is not None:
            filled = filled + arriving
        filled[:, kept - 1] = states  # without the rounding of the combination above
        return filled

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """One step of every pair of state and step."""
        value = self._stepped(x, self._prediction(x, index, row), index)
        return value if self.added is None else value + self.added.at(index, row, x)

    def _stepped(self, x: Tensor, prediction: Tensor, index: Tensor) -> Tensor:
        """The step without its noise: one linear combination of state and output."""
        keep, gain = self._at(x, index, "input", "output")
        return keep * x + gain * prediction

    def _mixture(self, x: Tensor, prediction: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The state and the clean image that the jumps from there are made of."""
        of_input, of_output = self._at(x, index, "clean_input", "clean_output")
        return x, of_input * x + of_output * prediction

    def _prediction(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        return predicted(self.denoiser, x, self._table(x)["timestep"][index], row)

    def _at(self, x: Tensor, index: Tensor, *names: str) -> tuple[Tensor, ...]:
        """Coefficients of the given steps, shaped to multiply ``x``."""
        table, along = self._table(x), (-1, *[1] * (x.ndim - 1))
        return tuple(table[name][index].view(along) for name in names)

    def _coefficients(self) -> dict[str, Tensor]:
        """The coefficients of every step by name, shape ``(N,)``, float64."""
        keep, gain, (clean_input, clean_output) = self.steps.keep, self.steps.gain, self.clean
        return {
            "input": keep + gain * clean_input,
            "output": gain * clean_output,
            "clean_input": clean_input,
            "clean_output": clean_output,
        }

    def _table(self, x: Tensor) -> dict[str, Tensor]:
        """The coefficients, computed in float64, rounded once to the dtype of the states, and cached."""
        key = (x.device, x.dtype)
        if key not in self._tables:
            table = {name: values.to(x.device, x.dtype) for name, values in self._coefficients().items()}
            self._tables[key] = {**table, "timestep": self.timesteps.to(x.device)}
        return self._tables[key]

    def _extension(self, device: torch.device) -> tuple[HeldSteps, Tensor | None]:
        if device not in self._extensions:
            arrived, added = None, self.added
            if added is not None:
                every = torch.arange(len(added.noise), device=added.noise.device)
                arrived = self.steps.accumulated(
                    added.every(every, added.noise), torch.tensor([self.length], device="cpu")
                )
            self._extensions[device] = self.steps.to(device), arrived
        return self._extensions[device]


def predicted(
    denoiser: Denoiser, x: Float[Tensor, "P *event"], timestep: Shaped[Tensor, " P"], row: Int[Tensor, " P"]
) -> Float[Tensor, "P *event"]:
    """The denoiser's prediction, in the dtype of ``x``.

    Raises
    ------
    ValueError
        If it has another shape than ``x``.
    """
    prediction = denoiser.predict(x, timestep, row)
    if prediction.shape != x.shape:
        raise ValueError(f"the denoiser must return shape {tuple(x.shape)}, got {tuple(prediction.shape)}")
    return prediction.to(x.dtype)
