r"""The DDIM chain (Song, Meng & Ermon 2021, eqs. 12 and 16), for any eta and any prediction type.

With ``ab`` and ``ab'`` the shares of signal before and after a step,

    sigma = eta sqrt((1 - ab') / (1 - ab) (1 - ab / ab'))
    x'    = sqrt(ab') x0 + sqrt(1 - ab' - sigma^2) eps + sigma n

where the clean image ``x0`` and the noise ``eps`` follow from the prediction of the model. Every step is computed
directly from the model's prediction: converting it to eps first would divide by zero at zero terminal SNR. The noise
``n`` is drawn once and is part of the problem, so that a stochastic chain is a fixed point like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.capabilities import HasCoefficients
from fixedpoint_diffusion.denoisers.convert import as_denoiser
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.samplers.clipping import clipped
from fixedpoint_diffusion.samplers.held import HeldSteps
from fixedpoint_diffusion.samplers.levels import NoiseLevels, levels_of
from fixedpoint_diffusion.samplers.memoryless import MemorylessChain
from fixedpoint_diffusion.samplers.noise import AddedNoise
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule, schedule_of
from fixedpoint_diffusion.schedules.timesteps import Timesteps, route_of

__all__ = ["DDIMChain"]


class DDIMChain(MemorylessChain, HasCoefficients):
    """A chain of ``N`` DDIM steps of a model, from noise to image.

    Parameters
    ----------
    denoiser
        A function ``g(x, timestep)`` of states of shape ``(P, *event)`` and int64 timesteps of shape ``(P,)``, a
        network, or a :class:`Denoiser`.
    schedule
        The noise schedule, or a ``diffusers.DDIMScheduler``.
    num_inference_steps
        ``N``, from 1 to ``num_train_timesteps``. The timesteps are spaced as by ``DDIMScheduler.set_timesteps``, and
        each step leads where ``DDIMScheduler.step`` leads. Default: the steps that were set on the scheduler, else 50.
    timesteps
        The timesteps, strictly decreasing from noise to image: each step leads to the next timestep, the last one to
        the end of the schedule. Or ``"quadratic"``: :func:`~fixedpoint_diffusion.quadratic_timesteps`. This argument
        and ``num_inference_steps`` take precedence over the timesteps that were set on the scheduler.
    eta
        From 0 (deterministic DDIM) to 1 (ancestral sampling).
    noise
        Standard normal noise of every row and step, shape ``(B, N, *event)``. Required if ``eta > 0``, ignored if
        ``eta = 0``.
    use_clipped_model_output
        Compute eps again from the clipped clean image. Without clipping it has no effect.

    Raises
    ------
    ValueError
        If eta is out of range; if noise is missing or has another shape; if there are more steps than training
        timesteps; if the timesteps are not strictly decreasing training timesteps, or not ``num_inference_steps`` in
        number; or if a model that predicts eps starts at zero terminal SNR, where eps does not determine the image.
    TypeError
        If the schedule or the denoiser is of a type that is not supported. The message says what to pass.
    """

    def __init__(
        self,
        denoiser: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any],
        schedule: DDIMSchedule | Any,
        num_inference_steps: int | None = None,
        *,
        timesteps: Timesteps | None = None,
        eta: float = 0.0,
        noise: Float[Tensor, "B N *event"] | None = None,
        use_clipped_model_output: bool = False,
    ) -> None:
        given: Any = eta
        if isinstance(given, str) or not 0.0 <= given <= 1.0:
            raise ValueError(f"eta must be from 0 to 1, got {eta!r}")
        self.schedule = schedule = schedule_of(schedule)
        self.route = route_of(schedule, num_inference_steps, timesteps)
        self.eta = eta
        self.use_clipped_model_output = use_clipped_model_output
        model, count = as_denoiser(denoiser), len(self.route)
        if eta > 0 and noise is None:
            raise ValueError("eta > 0 requires noise of shape (B, N, *event); see draw_noise")
        if noise is not None and (noise.ndim < 3 or noise.shape[1] != count):
            raise ValueError(f"noise must have shape (B, {count}, *event), got {tuple(noise.shape)}")
        before, after = self.route.levels(schedule)
        if schedule.prediction_type == "epsilon" and bool((before == 0).any()):
            raise ValueError(
                "prediction_type='epsilon' cannot be stepped from a state without signal (zero terminal SNR); "
                "take 'v_prediction' or 'sample'"
            )
        (levels,) = levels_of(before.sqrt(), (1 - before).sqrt(), schedule.prediction_type)
        sigma = eta * ((1 - after) / (1 - before) * (1 - before / after)).sqrt()
        # For eta = 1 at zero terminal SNR the difference is zero, and rounding may make it negative.
        keep = (1 - after - sigma**2).clamp(min=0.0).sqrt() / levels.noise
        steps = HeldSteps.of(keep, after.sqrt() - keep * levels.signal)
        # Noise without eta is allowed and has no effect.
        added = None if noise is None or eta == 0 else AddedNoise.of(noise, sigma.diag())
        clean, ones = (levels.clean_input, levels.clean_output), torch.ones_like(keep)
        super().__init__(model, self.route.tensor(), steps, clean, levels, added, ones)

    def coefficients(self) -> Float[Tensor, " N"]:
        """``sqrt(ab' / ab)``: the coefficient of ``x`` in the epsilon form of each step, float64."""
        return self._image_weights() / self._known.signal

    def no_inverse(self) -> str | None:
        """Why the chain has no inverse: clipping and thresholding discard information. None if it does neither."""
        if not self.schedule.clips:
            return None
        which = "dynamic thresholding" if self.schedule.thresholding else "clip_sample"
        return f"{which} is not invertible; take a schedule with clip_sample=False and thresholding=False"

    @property
    def _known(self) -> NoiseLevels:
        assert self.levels is not None  # made by ``__init__``
        return self.levels

    def _image_weights(self) -> Tensor:
        """``sqrt(ab')``: the weight of the clean image in a step or jump beside the predicted noise."""
        return self.steps.gain + self.steps.keep * self._known.signal

    def _stepped(self, x: Tensor, prediction: Tensor, index: Tensor) -> Tensor:
        # Clipping requires the clean image; otherwise the step is one linear combination of state and prediction.
        if not self.schedule.clips:
            return super()._stepped(x, prediction, index)
        seen, image = self._mixture(x, prediction, index)
        keep, gain = self._at(x, index, "keep", "gain")
        return keep * seen + gain * image

    def _mixture(self, x: Tensor, prediction: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The clipped clean image, and the state that it and the predicted noise would make.

        With ``use_clipped_model_output`` the noise is that of the state and the clipped image.
        """
        state, image = super()._mixture(x, prediction, index)
        if not self.schedule.clips:
            return state, image
        bounded = clipped(image, self.schedule)
        if self.use_clipped_model_output:
            return state, bounded
        (signal,) = self._at(x, index, "signal")
        return state + signal * (bounded - image), bounded

    def _coefficients(self) -> dict[str, Tensor]:
        own = {"keep": self.steps.keep, "gain": self.steps.gain, "signal": self._known.signal}
        return {**super()._coefficients(), **own}
