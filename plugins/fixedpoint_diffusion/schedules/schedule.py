r"""Noise schedules and timestep spacings, with the names, defaults and values of ``diffusers.DDIMScheduler``.

``alphas_cumprod[t]`` is the share of signal left after ``t + 1`` training steps, written ``ab_t``. The schedulers of
diffusers compute it in float32, and models are trained with these values. The table is therefore computed in float32
here as well, and then converted to float64, in which all coefficients are computed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.core.options import OptionError, Options, option

__all__ = ["NoiseSchedule", "PredictionType", "Spacing"]

PredictionType = Literal["epsilon", "sample", "v_prediction"]
Spacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True)
class NoiseSchedule(Options):
    """The configuration of a ``diffusers.DDIMScheduler``, field for field, and the tables computed from it."""

    num_train_timesteps: int = option(1000, ge=1, help="steps of the training process")
    beta_start: float = option(1e-4, ge=0.0, lt=1.0, help="variance added in the first training step")
    beta_end: float = option(0.02, ge=0.0, le=1.0, help="variance added in the last training step")
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = option(
        "linear", help="how the variance grows in between"
    )
    trained_betas: tuple[float, ...] | None = option(None, help="the variances themselves, instead of the above")
    rescale_betas_zero_snr: bool = option(False, help="rescale so that the last step is pure noise (v-prediction)")
    set_alpha_to_one: bool = option(True, help="end without noise rather than at the noise level of timestep 0")
    steps_offset: int = option(0, ge=0, help="added to every timestep of leading spacing")
    timestep_spacing: Spacing = option("leading", help="how the timesteps of a chain are laid out")
    prediction_type: PredictionType = option("epsilon", help="what the model predicts")
    clip_sample: bool = option(True, help="clip the predicted clean image")
    clip_sample_range: float = option(1.0, gt=0.0, help="largest absolute value of the clipped image")
    thresholding: bool = option(False, help="dynamic thresholding of the predicted clean image, instead of clipping")
    dynamic_thresholding_ratio: float = option(0.995, gt=0.0, le=1.0, help="quantile of dynamic thresholding")
    sample_max_value: float = option(1.0, ge=1.0, help="largest threshold of dynamic thresholding")

    def check(self) -> None:
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise OptionError(
                type(self).__name__,
                "trained_betas",
                f"must hold num_train_timesteps = {self.num_train_timesteps} values, got {len(self.trained_betas)}",
            )

    @property
    def clips(self) -> bool:
        """Whether the predicted clean image is clipped or thresholded before it is used."""
        return self.clip_sample or self.thresholding

    @cached_property
    def alphas_cumprod(self) -> Float[Tensor, " T"]:
        """``ab_0 .. ab_{T-1}``, computed in float32 and returned as float64."""
        betas = self._betas()
        if self.rescale_betas_zero_snr:
            betas = _zero_terminal_snr(betas)
        return (1.0 - betas).cumprod(0).double()

    @property
    def final_alpha_cumprod(self) -> Float[Tensor, ""]:
        """The share of signal at the end of a chain, a float64 scalar."""
        return torch.ones((), dtype=torch.float64, device="cpu") if self.set_alpha_to_one else self.alphas_cumprod[0]

    def timesteps(self, num_inference_steps: int) -> NDArray[np.int64]:
        """The timesteps of a chain of ``N`` steps, from noise to image.

        Trailing spacing counts down from ``T`` by ``T / N``. Where rounding adds a timestep below 0 (as it does in
        diffusers at N = 61, for example), that timestep is omitted, so that the chain has the requested length.

        Returns
        -------
        ndarray
            Strictly decreasing, shape ``(N,)``, int64.

        Raises
        ------
        ValueError
            If ``num_inference_steps`` is not from 1 to ``num_train_timesteps``, or if ``steps_offset`` leads beyond the
            last training timestep.
        """
        total, count = self.num_train_timesteps, num_inference_steps
        if not 1 <= count <= total:
            raise ValueError(f"num_inference_steps must be from 1 to num_train_timesteps = {total}, got {count}")
        if self.timestep_spacing == "linspace":
            steps = np.linspace(0, total - 1, count).round()[::-1]
        elif self.timestep_spacing == "leading":
            steps = (np.arange(count, dtype=np.float64) * (total // count))[::-1] + self.steps_offset
        else:
            steps = np.round(np.arange(total, 0, -total / count)) - 1
            steps = steps[steps >= 0]  # see the docstring: rounding may add a timestep below 0
        if steps.max() >= total:
            raise ValueError(
                f"steps_offset = {self.steps_offset} leads to timestep {int(steps.max())} with {count} steps, beyond "
                f"num_train_timesteps = {total}"
            )
        return steps.astype(np.int64)

    def signal(self, num_inference_steps: int) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """``ab`` at the timestep of every step of a chain, and at the timestep that the step leads to, float64.

        As in diffusers, a step leads ``T // N`` timesteps down, whatever the spacing.
        """
        steps = torch.from_numpy(self.timesteps(num_inference_steps))
        return self.levels(steps, steps - self.num_train_timesteps // num_inference_steps)

    def levels(
        self, timesteps: Int[Tensor, " N"], before: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """``ab`` at ``timesteps`` and at ``before``, where the steps lead (below 0: the end of the chain); float64."""
        table = self.alphas_cumprod
        return table[timesteps], torch.where(before >= 0, table[before.clamp(min=0)], self.final_alpha_cumprod)

    def checked_timesteps(self, timesteps: Sequence[int] | NDArray[np.integer[Any]] | Tensor) -> tuple[int, ...]:
        """The given timesteps as a tuple of integers, after a check.

        Raises
        ------
        ValueError
            If they are not strictly decreasing integers from 0 to ``T - 1``.
        """
        steps = _integers(timesteps)
        total = self.num_train_timesteps
        outside = [step for step in steps if not 0 <= step < total]
        if outside:
            raise ValueError(f"timesteps must be from 0 to num_train_timesteps - 1 = {total - 1}, got {outside[0]}")
        for one, other in itertools.pairwise(steps):
            if one <= other:
                hint = (
                    "leave out what is there twice"
                    if one == other
                    else "a chain goes from noise to image, so reverse them"
                    if list(steps) == sorted(steps)
                    else "sort them, from noise to image"
                )
                raise ValueError(f"timesteps must be strictly decreasing, got {one} before {other}; {hint}")
        return steps

    def _betas(self) -> Float[Tensor, " T"]:
        """The variances of the training steps, float32 as in diffusers."""
        count = self.num_train_timesteps
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas, dtype=torch.float32, device="cpu")
        if self.beta_schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, count, dtype=torch.float32, device="cpu")
        if self.beta_schedule == "scaled_linear":
            return (
                torch.linspace(self.beta_start**0.5, self.beta_end**0.5, count, dtype=torch.float32, device="cpu") ** 2
            )
        # At most 0.999, against a singularity in the last steps (Nichol & Dhariwal 2021, section 3.2).
        return torch.tensor(
            [min(1.0 - _cosine((i + 1) / count) / _cosine(i / count), 0.999) for i in range(count)],
            dtype=torch.float32,
            device="cpu",
        )


def _integers(values: Any) -> tuple[int, ...]:
    """The values as a tuple of integers; floats are refused, even whole ones."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    found = np.asarray(values) if isinstance(values, (list, tuple, range, np.ndarray)) else np.empty(0, dtype=object)
    if found.ndim != 1 or len(found) == 0 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"timesteps must be a list of integers, from noise to image, got {_shortly(values)}")
    return tuple(int(step) for step in found)


def _shortly(values: Any) -> str:
    """The ``repr`` of values for an error message, cut to 60 characters."""
    said = " ".join(repr(list(values) if isinstance(values, tuple) else values).split())
    return said if len(said) <= 60 else f"{said[:56]} ..."


def _cosine(share: float) -> float:
    """``ab`` of the cosine schedule (Nichol & Dhariwal 2021, eq. 17)."""
    return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2


def _zero_terminal_snr(betas: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Shift and scale ``sqrt(ab)`` so that it ends at zero and keeps its first value (Lin et al. 2024, algorithm 1)."""
    root = (1.0 - betas).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    kept = ((root - last) * (first / (first - last))) ** 2
    return 1.0 - torch.cat([kept[:1], kept[1:] / kept[:-1]])
