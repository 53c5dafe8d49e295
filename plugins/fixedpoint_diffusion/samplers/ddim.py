r"""The DDIM chain (Song, Meng & Ermon 2021, eqs. 12 and 16), for any eta and any prediction type.

With ``ab`` and ``ab'`` the shares of signal before and after a step,

    sigma = eta sqrt((1 - ab') / (1 - ab) (1 - ab / ab'))
    x'    = sqrt(ab') x0 + sqrt(1 - ab' - sigma^2) eps + sigma n

where the clean image ``x0`` and the noise ``eps`` follow from the prediction of the model. Every step is computed
directly from the model's prediction: converting it to eps first would divide by zero at zero terminal SNR. The noise
``n`` is drawn once and is part of the problem, so that a stochastic chain is a fixed point like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.capabilities import HasCoefficients, HasGaussianSlopes, HasNoInverse
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.coarse import HasCoarse, HasExtension, HasJumps, check_kept
from fixedpoint.chains.planning.costs import HasCostKey
from fixedpoint_diffusion.denoisers.convert import as_denoiser
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.samplers.clipping import clipped
from fixedpoint_diffusion.samplers.extension import Extension
from fixedpoint_diffusion.samplers.jumps import StepCoefficients
from fixedpoint_diffusion.samplers.tables import coefficient_tables
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule, schedule_of
from fixedpoint_diffusion.schedules.timesteps import Timesteps, route_of

__all__ = ["DDIMChain"]


class DDIMChain(Chain, HasCoefficients, HasGaussianSlopes, HasNoInverse, HasCoarse, HasJumps, HasExtension, HasCostKey):
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
        self.denoiser = as_denoiser(denoiser)
        self.schedule = schedule = schedule_of(schedule)
        self.route = route_of(schedule, num_inference_steps, timesteps)
        self.length = len(self.route)
        self.eta = eta
        self.use_clipped_model_output = use_clipped_model_output
        if eta > 0 and noise is None:
            raise ValueError("eta > 0 requires noise of shape (B, N, *event); see draw_noise")
        if noise is not None and (noise.ndim < 3 or noise.shape[1] != self.length):
            raise ValueError(f"noise must have shape (B, {self.length}, *event), got {tuple(noise.shape)}")
        self.noise = noise if eta > 0 else None  # noise without eta is allowed and has no effect
        signal, later = self.route.levels(schedule)
        if schedule.prediction_type == "epsilon" and bool((signal == 0).any()):
            raise ValueError(
                "prediction_type='epsilon' cannot be stepped from a state without signal (zero terminal SNR); "
                "take 'v_prediction' or 'sample'"
            )
        self.steps = StepCoefficients.ddim(self.route.tensor(), signal, later, eta)
        self._tables: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
        self._extensions: dict[torch.device, Extension] = {}  # made when ``extend`` is first called

    def coefficients(self) -> Float[Tensor, " N"]:
        """``sqrt(ab' / ab)``: the coefficient of ``x`` in the epsilon form of each step, float64."""
        return self.steps.x0_weight / self.steps.signal.sqrt()

    def cost_key(self) -> tuple[object, Hashable]:
        """The key of the denoiser: chains of the same network take the same time per step."""
        return self.denoiser.cost_key()

    def gaussian_slopes(self, variance: float) -> Float[Tensor, " N"]:
        """The slope of each step for data from a single Gaussian, float64; clipping is ignored.

        Raises
        ------
        ValueError
            If ``variance`` is not positive.
        """
        if not variance > 0:
            raise ValueError(f"variance must be positive, got {variance}")
        return self.steps.gaussian_slopes(variance)

    def no_inverse(self) -> str | None:
        """Why the chain has no inverse: clipping and thresholding discard information. None if it does neither."""
        if not self.schedule.clips:
            return None
        which = "dynamic thresholding" if self.schedule.thresholding else "clip_sample"
        return f"{which} is not invertible; take a schedule with clip_sample=False and thresholding=False"

    def coarse(self, kept: Int[Tensor, " n"]) -> DDIMChain:
        """A coarse chain between some of the states; each jump carries the noise of the steps that it replaces.

        A jump is the result of its steps with the clean image held at the prediction of the first step (see
        ``fixedpoint_diffusion.samplers.jumps``). For eta = 0 it is the DDIM step between the two noise levels.

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
        chain = copy.copy(self)
        chain.length, chain.steps = len(kept), self.steps.jumps(kept)
        chain._tables, chain._extensions = {}, {}
        if self.noise is not None:
            # The jumps have sigma = 1, so this noise is added with the scale it already has.
            chain.noise = self.steps.arriving(self.noise, kept)[:, kept - 1]
        return chain

    def jumps(self, x0: Float[Tensor, "B *event"], row: Int[Tensor, " B"]) -> Float[Tensor, "B N *event"]:
        """All states, each by one jump from ``x_0``, at one evaluation of the denoiser per row."""
        image, noise = (part.unsqueeze(1) for part in self._predicted(x0, torch.zeros_like(row), row))
        steps = self.steps.from_start()
        along = (1, -1, *[1] * (x0.ndim - 1))  # broadcasts one weight per state over rows and event
        states = steps.x0_weight.to(x0).view(along) * image + steps.direction.to(x0).view(along) * noise
        if self.noise is not None:
            # ``kept`` is the last state alone: every jump starts at state 0, so the noise accumulates from there.
            states = states + self.steps.arriving(self.noise[row].to(x0), torch.tensor([self.length]))
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

        The jump uses the clean image and the noise that are recovered from ``x`` and ``value`` (see
        ``fixedpoint_diffusion.samplers.extension``). Without clipping, or with ``use_clipped_model_output``, these are
        the predictions of the model, and the jump equals that of :meth:`jumps` and :meth:`coarse`. If the clean image
        is clipped but the noise is not, ``x`` is not a combination of the two, and the jump differs.

        The pair is computed from the difference between two neighbouring states, so longer jumps amplify the rounding
        errors of the states. In float32 at N = 1000, for jumps from the start, the error relative to the target state
        is at most 1e-3 at state 100, 1e-2 at state 500, and 0.1 at the image, of which the start contains little. In
        float64 it is a hundred-millionth of that.

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
            The target states, shape ``(P, *event)``, of the dtype of ``x``.

        Raises
        ------
        ValueError
            If ``value`` has another shape or dtype than ``x``.
        """
        if value.shape != x.shape or value.dtype != x.dtype:
            raise ValueError(
                f"value must have shape {tuple(x.shape)}, {x.dtype} like x, got {tuple(value.shape)}, {value.dtype}"
            )
        if x.device not in self._extensions:
            self._extensions[x.device] = Extension.of(self.steps, self.noise, x.device)
        return self._extensions[x.device](x, value, index, target, row)

    def interpolate(
        self,
        x0: Float[Tensor, "B *event"],
        states: Float[Tensor, "B n *event"],
        kept: Int[Tensor, " n"],
        row: Int[Tensor, " B"],
    ) -> Float[Tensor, "B N *event"]:
        """All states from the kept ones; states in between lie on the jump from one kept state to the next.

        For eta = 0, ``x / sqrt(ab)`` is interpolated linearly in ``sqrt(1 / ab - 1)``. For eta > 0, the noise added
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
        place = torch.searchsorted(kept, torch.arange(1, self.length + 1))
        along = (1, -1, *[1] * (x0.ndim - 1))
        first, last = (share.to(x0).view(along) for share in self.steps.blend(kept))
        after = states
        arriving = None if self.noise is None else self.steps.arriving(self.noise[row].to(x0), kept)
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
        """One DDIM step of every pair of state and step."""
        at = self._at(x, index)
        prediction = self._prediction(x, index, row)
        # Clipping requires the clean image; otherwise the step is one linear combination of state and prediction.
        if self.schedule.clips:
            image, noise = self._clipped(x, prediction, at)
            value = at["x0_weight"] * image + at["direction"] * noise
        else:
            value = at["keep"] * x + at["gain"] * prediction
        if self.noise is not None:
            value = value + at["sigma"] * self.noise[row, index].to(x)
        return value

    def _prediction(self, x: Tensor, index: Tensor, row: Tensor) -> Tensor:
        prediction = self.denoiser.predict(x, self._table(x)["timestep"][index], row)
        if prediction.shape != x.shape:
            raise ValueError(f"the denoiser must return shape {tuple(x.shape)}, got {tuple(prediction.shape)}")
        return prediction.to(x.dtype)

    def _predicted(self, x: Tensor, index: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """The predicted clean image, clipped if the schedule clips, and the predicted noise."""
        at, prediction = self._at(x, index), self._prediction(x, index, row)
        if self.schedule.clips:
            return self._clipped(x, prediction, at)
        return at["image_x"] * x + at["image_out"] * prediction, at["noise_x"] * x + at["noise_out"] * prediction

    def _clipped(self, x: Tensor, prediction: Tensor, at: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The clipped clean image, and the noise: the model's, or computed again from the clipped image."""
        image = at["image_x"] * x + at["image_out"] * prediction
        noise = at["noise_x"] * x + at["noise_out"] * prediction
        image = clipped(image, self.schedule)
        if self.use_clipped_model_output:
            noise = (x - at["root_signal"] * image) / at["root_noise"]
        return image, noise

    def _at(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        """The coefficients of the given steps, shaped to multiply ``x``."""
        return {name: _column(values[index], x) for name, values in self._table(x).items() if name != "timestep"}

    def _table(self, x: Tensor) -> dict[str, Tensor]:
        """The coefficients of every step, computed in float64, rounded once to the dtype of the states, and cached."""
        key = (x.device, x.dtype)
        if key not in self._tables:
            tables = coefficient_tables(self.steps, self.schedule.prediction_type)
            table = {name: values.to(x.device, x.dtype) for name, values in tables.items()}
            self._tables[key] = {**table, "timestep": self.steps.timestep.to(x.device)}
        return self._tables[key]


def _column(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))
