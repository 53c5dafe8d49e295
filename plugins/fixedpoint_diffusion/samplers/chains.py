"""Chains of any affine sampler, from its tables: ``SamplerChain`` without memory, ``MultistepChain`` with one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.capabilities import (
    HasGaussianSlopes,
    HasReferenceSlopes,
    HasRepresentativeSteps,
    HasSampleFactors,
)
from fixedpoint.chains.chain import AffineChain
from fixedpoint.chains.coarse import HasJumps
from fixedpoint.chains.planning.costs import HasCostKey
from fixedpoint.chains.recurrence.affine import Affine
from fixedpoint.core.problem import AbilityError
from fixedpoint_diffusion.denoisers.convert import as_denoiser
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.samplers.held import HeldSteps
from fixedpoint_diffusion.samplers.memoryless import MemorylessChain, predicted
from fixedpoint_diffusion.samplers.noise import AddedNoise
from fixedpoint_diffusion.samplers.recurrence import SamplerTables

__all__ = ["MultistepChain", "SamplerChain"]

# A first step that keeps less of the start than this uses it for its prediction alone.
_FORGETS = 1e-3


class SamplerChain(MemorylessChain, HasReferenceSlopes, HasRepresentativeSteps):
    """A sampler without memory as a chain of steps, ``u_{j+1} = a_j u_j + b_j m_j + c_j n``.

    The states are the inputs of the network, and then the sample. Where the noise levels are not known, jumps hold the
    raw output of the network, else the clean image that it implies.

    Parameters
    ----------
    denoiser
        A function ``g(x, timestep)``, a network, or a :class:`Denoiser`. It predicts what the scheduler's
        ``prediction_type`` says.
    tables
        The sampler, with ``tables.history == 1``.
    noise
        Standard normal noise for each of the ``M`` draws, shape ``(B, M, *event)``; required if the sampler is
        stochastic.

    Raises
    ------
    ValueError
        If the sampler has a memory, or if the noise is missing or of another shape.
    """

    def __init__(
        self,
        denoiser: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any],
        tables: SamplerTables,
        noise: Float[Tensor, "B M *event"] | None = None,
    ) -> None:
        form = tables.local
        if form is None or form.history > 1:
            raise ValueError(f"{tables.scheduler} as it is set has a memory; take MultistepChain")
        clean = _clean(tables)
        gain = form.outputs[:, 0] / clean[1]
        steps = HeldSteps.of(form.inputs[:, 0] - gain * clean[0], gain)
        added = _added(tables, form.noise, noise)
        super().__init__(
            as_denoiser(denoiser), tables.timesteps, steps, clean, tables.levels, added, tables.state_factors
        )

    def reference_slopes(self) -> Float[Tensor, " N"]:
        """Those for Gaussian data of variance 1, float64; 1 where the noise levels are not known."""
        return (
            torch.ones(self.length, dtype=torch.float64, device="cpu")
            if self.levels is None
            else self.gaussian_slopes(1.0)
        )

    def representative_steps(self) -> Sequence[int]:
        """Those that the denoiser declares; else the first."""
        return _representative(self.denoiser)

    def no_inverse(self) -> str | None:
        """Why the chain has no inverse: its first step keeps only the predicted image. None if it keeps more."""
        if self.length == 1 or abs(float(self.steps.keep[0])) >= _FORGETS:
            return None
        return "its steps keep nothing of their state but the predicted image; take a sampler such as DDIM"


class MultistepChain(AffineChain, HasJumps, HasGaussianSlopes, HasSampleFactors, HasCostKey, HasRepresentativeSteps):
    """A sampler with memory as predictions joined by its recurrence.

    The states are the inputs of the network, and then the sample. The recurrence is the local form of the sampler, or
    that of the dense tables where it has none.

    Parameters
    ----------
    denoiser, tables, noise
        As for :class:`SamplerChain`, with a sampler of any history.

    Raises
    ------
    ValueError
        If the noise is missing or of another shape.
    """

    def __init__(
        self,
        denoiser: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any],
        tables: SamplerTables,
        noise: Float[Tensor, "B M *event"] | None = None,
    ) -> None:
        self.denoiser, self.tables, self.length = as_denoiser(denoiser), tables, tables.evaluations
        form = tables.local
        if form is None:
            self.recurrence = Affine.dense(tables.starts, tables.weights)
            weights = tables.noise[1:]
        else:
            self.recurrence, weights = Affine(form.inputs, form.outputs), form.noise
        self.levels, self.clean = tables.levels, _clean(tables)
        self.added = _added(tables, weights, noise)
        self._timesteps: dict[torch.device, Tensor] = {}

    def cost_key(self) -> tuple[object, Hashable]:
        """The key of the denoiser: chains of the same network take the same time per prediction."""
        return self.denoiser.cost_key()

    def representative_steps(self) -> Sequence[int]:
        """Those that the denoiser declares; else the first."""
        return _representative(self.denoiser)

    def sample_factors(self) -> Float[Tensor, " K"] | None:
        """The numbers by which the states have to be multiplied to give the scheduler's own, float64."""
        return self.tables.state_factors

    def predict(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """The raw output of the network for every pair of an input and the number of its evaluation."""
        if x.device not in self._timesteps:
            self._timesteps[x.device] = self.tables.timesteps.to(x.device)
        return predicted(self.denoiser, x, self._timesteps[x.device][index], row)

    def constants(self, index: Int[Tensor, " P"], row: Int[Tensor, " P"]) -> Float[Tensor, "P *event"] | None:
        """The noise that is new in the input after each evaluation, in the dtype of the noise."""
        if self.added is None:
            return None
        like = self.added.noise[:1, 0].expand(len(index), *self.added.noise.shape[2:])
        return self.added.at(index, row, like)

    def gaussian_slopes(self, variance: float) -> Float[Tensor, " K"]:
        """The slope of each raw output for data from a single Gaussian, float64.

        Raises
        ------
        ValueError
            If ``variance`` is not positive.
        AbilityError
            If the noise levels of the sampler are not known.
        """
        if self.levels is None:
            raise AbilityError(
                f"gaussian slopes require noise levels, and those of {self.tables.scheduler} are unknown"
            )
        of_input, of_output = self.clean
        return (self.levels.clean_slopes(variance) - of_input) / of_output

    def reference_slopes(self) -> Float[Tensor, " K"]:
        """Those for Gaussian data of variance 1, float64; 0 where the noise levels are not known."""
        return (
            torch.zeros(self.length, dtype=torch.float64, device="cpu")
            if self.levels is None
            else self.gaussian_slopes(1.0)
        )

    def jumps(self, x0: Float[Tensor, "B *event"], row: Int[Tensor, " B"]) -> Float[Tensor, "B K *event"]:
        """All states, each by one jump from ``x_0``, with the clean image held at what the first evaluation implies.

        With ``D_j = C_j u_j + O_j m_j`` equal to ``D`` for all ``j``, the states solve the lower-triangular system
        ``(I + B O^-1 C) u = L x_0 + B O^-1 D + Z n``.
        """
        index, along = torch.zeros_like(row), (1, -1, *[1] * (x0.ndim - 1))
        of_input, of_output = (float(part[0]) for part in self.clean)
        image = of_input * x0 + of_output * self.predict(x0, index, row)
        start, held, noise = self._responses()
        states = start.to(x0).view(along) * x0.unsqueeze(1) + held.to(x0).view(along) * image.unsqueeze(1)
        if self.added is None:
            return states
        # One draw after another: the rounding of a matrix product may depend on the batch.
        for k, draw in enumerate(self.added.noise[row].to(x0).unbind(1)):
            states = states + noise[:, k].to(x0).view(along) * draw.unsqueeze(1)
        return states

    def _responses(self) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Float[Tensor, "K M"]]:
        """The coefficients of ``u_0``, the clean image and the draws in ``u_1 .. u_K`` while the image is held."""
        tables, (of_input, of_output) = self.tables, self.clean
        pulled = tables.weights / of_output
        system = torch.eye(len(tables.starts), dtype=torch.float64, device="cpu")
        system[:, :-1] += pulled * of_input
        given = torch.cat(
            [(tables.starts / tables.starts[0]).unsqueeze(1), pulled.sum(1, keepdim=True), tables.noise], dim=1
        )
        solved = torch.linalg.solve_triangular(system, given, upper=False, unitriangular=True)[1:]
        return solved[:, 0], solved[:, 1], solved[:, 2:]


def _representative(denoiser: Denoiser) -> Sequence[int]:
    return denoiser.representative_steps() if isinstance(denoiser, HasRepresentativeSteps) else (0,)


def _clean(tables: SamplerTables) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """The coefficients of input and output in what jumps hold: the clean image, or the output where it is not known."""
    levels = tables.levels
    if levels is None:
        ones = torch.ones(tables.evaluations, dtype=torch.float64, device="cpu")
        return torch.zeros_like(ones), ones
    return levels.clean_input, levels.clean_output


def _added(tables: SamplerTables, weights: Float[Tensor, "K M"], noise: Tensor | None) -> AddedNoise | None:
    draws = len(tables.draws)
    if noise is None and tables.stochastic:
        raise ValueError(
            f"{tables.scheduler} as it is set draws noise {draws} times: pass noise of shape (B, {draws}, *event), for "
            f"example by draw_noise(seeds, shape, {draws})"
        )
    if noise is not None and (noise.ndim < 3 or noise.shape[1] != draws):
        raise ValueError(
            f"noise must have shape (B, {draws}, *event), one image for each draw, got {tuple(noise.shape)}"
        )
    return None if noise is None or not tables.stochastic else AddedNoise.of(noise, weights)
