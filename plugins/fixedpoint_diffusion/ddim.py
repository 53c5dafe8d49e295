r"""The DDIM chain (Song, Meng & Ermon 2021, eqs. 12 and 16), any eta, any prediction type.

With ``ab`` and ``ab'`` the shares of signal before and after a step,

    sigma = eta sqrt((1 - ab') / (1 - ab) (1 - ab / ab'))
    x'    = sqrt(ab') x0 + sqrt(1 - ab' - sigma^2) eps + sigma n

where the clean image ``x0`` and the noise ``eps`` follow from what the model predicts. Every step is computed from
the model's *own* prediction: a detour through eps would divide by zero at zero terminal SNR. Noise ``n`` is drawn
once and belongs to the problem, which makes a stochastic chain a fixed point like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fixedpoint.chains.chain import Chain, ChainProblem
from fixedpoint.chains.coarse import check_kept
from fixedpoint_diffusion.denoiser import Denoiser, as_denoiser
from fixedpoint_diffusion.jumps import Steps
from fixedpoint_diffusion.schedule import DDIMSchedule

__all__ = ["DDIMChain", "ddim_problem"]


class DDIMChain(Chain):
    """``N`` DDIM steps of a model, from noise to image.

    Parameters
    ----------
    denoiser
        A function ``g(x, timestep)`` of states ``(P, *event)`` and timesteps ``(P,)``, or a :class:`Denoiser`.
    schedule
        The noise schedule.
    num_inference_steps
        ``N``.
    eta
        0: deterministic DDIM; 1: ancestral sampling; from 0 to 1.
    noise
        Shape ``(B, N, *event)``: standard normal noise of every row and step; wanted when ``eta > 0``.
    use_clipped_model_output
        Derive eps anew from the clipped clean image.

    Raises
    ------
    ValueError
        For an eta out of range, missing or misshapen noise, more steps than timesteps, or a prediction type that
        cannot be stepped: eps says nothing about the image where there is no signal (zero terminal SNR).
    """

    def __init__(
        self,
        denoiser: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any],
        schedule: DDIMSchedule,
        num_inference_steps: int,
        *,
        eta: float = 0.0,
        noise: Float[Tensor, "B N *event"] | None = None,
        use_clipped_model_output: bool = False,
    ) -> None:
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must be from 0 to 1, got {eta}")
        self.denoiser = as_denoiser(denoiser)
        self.schedule = schedule
        self.length = num_inference_steps
        self.eta = eta
        self.use_clipped_model_output = use_clipped_model_output
        if eta > 0 and noise is None:
            raise ValueError("eta > 0 wants noise of shape (B, N, *event); see draw_noise")
        if noise is not None and (noise.ndim < 3 or noise.shape[1] != self.length):
            raise ValueError(f"noise must have shape (B, {self.length}, *event), got {tuple(noise.shape)}")
        self.noise = noise if eta > 0 else None
        signal, later = schedule.signal(num_inference_steps)
        if schedule.prediction_type == "epsilon" and bool((signal == 0).any()):
            raise ValueError(
                "prediction_type='epsilon' cannot be stepped from a state without signal (zero terminal SNR); "
                "take 'v_prediction' or 'sample'"
            )
        timesteps = torch.from_numpy(schedule.timesteps(num_inference_steps).copy())
        self.steps = Steps.ddim(timesteps, signal, later, eta)
        self._tables: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}

    def coefficients(self) -> Float[Tensor, " N"]:
        """``sqrt(ab' / ab)``: the coefficient of ``x`` in the epsilon form of each step, float64."""
        return self.steps.image / self.steps.signal.sqrt()

    def coarse(self, kept: Int[Tensor, " n"]) -> DDIMChain:
        """Fewer, longer steps between some of the states, each with the noise of the steps it stands for.

        A jump is what its steps would make of the clean image predicted at the first of them (see
        ``fixedpoint_diffusion.jumps``): for eta = 0 the DDIM step between the two noise levels.

        Parameters
        ----------
        kept
            The states that are left: strictly increasing from 1 to ``N``, the last one ``N``.

        Raises
        ------
        ValueError
            For any other ``kept``.
        """
        kept = check_kept(kept, self.length)
        chain = copy.copy(self)
        chain.length, chain.steps, chain._tables = len(kept), self.steps.jumps(kept), {}
        if self.noise is not None:
            chain.noise = self.steps.arriving(self.noise, kept)[:, kept - 1]
        return chain

    def jumps(self, x0: Float[Tensor, "B *event"], row: Int[Tensor, " B"]) -> Float[Tensor, "B N *event"]:
        """Every state as the one jump from ``x_0`` to it: one evaluation of the denoiser per row."""
        image, noise = (part.unsqueeze(1) for part in self._predicted(x0, torch.zeros_like(row), row))
        steps = self.steps.from_start()
        along = (1, -1, *[1] * (x0.ndim - 1))
        states = steps.image.to(x0).view(along) * image + steps.direction.to(x0).view(along) * noise
        if self.noise is not None:
            states = states + self.steps.arriving(self.noise[row].to(x0), torch.tensor([self.length]))
        return states

    def interpolate(
        self,
        x0: Float[Tensor, "B *event"],
        states: Float[Tensor, "B n *event"],
        kept: Int[Tensor, " n"],
        row: Int[Tensor, " B"],
    ) -> Float[Tensor, "B N *event"]:
        """All states from the kept ones: between two of them, those of the jump that leads from one to the other.

        For eta = 0 ``x / sqrt(ab)`` is linear in ``sqrt(1 / ab - 1)``. The noise of the steps since the last kept state
        is taken off the next one before and put back after, as much of it as has arrived at each state.

        Parameters
        ----------
        x0
            The start.
        states
            The states ``kept``; they come back bit for bit.
        kept
            As for :meth:`coarse`.
        row
            Which row of the noise each one is.

        Raises
        ------
        ValueError
            For states that do not go with ``kept``, and for a ``kept`` that :meth:`coarse` refuses.
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
        filled[:, kept - 1] = states
        return filled

    def step(
        self, x: Float[Tensor, "P *event"], index: Int[Tensor, " P"], row: Int[Tensor, " P"]
    ) -> Float[Tensor, "P *event"]:
        """One DDIM step of every pair."""
        at = self._at(x, index)
        prediction = self._prediction(x, index, row)
        if self.schedule.clips:
            image, noise = self._clipped(x, prediction, at)
            value = at["image"] * image + at["direction"] * noise
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
        """The clean image, clipped if it is to be, and the noise."""
        at, prediction = self._at(x, index), self._prediction(x, index, row)
        if self.schedule.clips:
            return self._clipped(x, prediction, at)
        return at["image_x"] * x + at["image_out"] * prediction, at["noise_x"] * x + at["noise_out"] * prediction

    def _clipped(self, x: Tensor, prediction: Tensor, at: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        image = at["image_x"] * x + at["image_out"] * prediction
        noise = at["noise_x"] * x + at["noise_out"] * prediction
        if self.schedule.thresholding:
            image = self._thresholded(image)
        else:
            image = image.clamp(-self.schedule.clip_sample_range, self.schedule.clip_sample_range)
        if self.use_clipped_model_output:
            noise = (x - at["root_signal"] * image) / at["root_noise"]
        return image, noise

    def _thresholded(self, image: Tensor) -> Tensor:
        """Dynamic thresholding (Saharia et al. 2022, section 2.3): clip to a quantile and divide by it."""
        wide = image.flatten(1).to(torch.promote_types(image.dtype, torch.float32))
        bound = torch.quantile(wide.abs(), self.schedule.dynamic_thresholding_ratio, dim=1, keepdim=True)
        bound = bound.clamp(min=1.0, max=self.schedule.sample_max_value)
        return (torch.minimum(torch.maximum(wide, -bound), bound) / bound).reshape(image.shape).to(image.dtype)

    def _at(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {name: _column(values[index], x) for name, values in self._table(x).items() if name != "timestep"}

    def _table(self, x: Tensor) -> dict[str, Tensor]:
        """Coefficients of every step, computed in float64 and rounded once to the state's dtype."""
        key = (x.device, x.dtype)
        if key not in self._tables:
            table = {name: values.to(x.device, x.dtype) for name, values in self._coefficients().items()}
            self._tables[key] = {**table, "timestep": self.steps.timestep.to(x.device)}
        return self._tables[key]

    def _coefficients(self) -> dict[str, Tensor]:
        steps = self.steps
        a, s = steps.signal.sqrt(), (1 - steps.signal).sqrt()
        one, zero = torch.ones_like(a), torch.zeros_like(a)
        kind = self.schedule.prediction_type
        if kind == "epsilon":
            image_x, image_out, noise_x, noise_out = 1 / a, -s / a, zero, one
        elif kind == "sample":
            image_x, image_out, noise_x, noise_out = zero, one, 1 / s, -a / s
        else:
            image_x, image_out, noise_x, noise_out = a, -s, s, a
        return {
            "keep": steps.image * image_x + steps.direction * noise_x,
            "gain": steps.image * image_out + steps.direction * noise_out,
            "sigma": steps.sigma,
            "image_x": image_x,
            "image_out": image_out,
            "noise_x": noise_x,
            "noise_out": noise_out,
            "root_signal": a,
            "root_noise": s,
            "image": steps.image,
            "direction": steps.direction,
        }


def ddim_problem(
    denoiser: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any],
    schedule: DDIMSchedule | Any,
    x_T: Float[Tensor, "B *event"],
    *,
    num_inference_steps: int = 50,
    eta: float = 0.0,
    noise: Float[Tensor, "B N *event"] | None = None,
    max_batch: int | None = None,
) -> ChainProblem:
    """The joint fixed point of a DDIM chain.

    Parameters
    ----------
    denoiser
        A function ``g(x, timestep)``, your ``diffusers`` network, or a :class:`Denoiser` (for conditioning and
        guidance :class:`~fixedpoint_diffusion.network.NetworkDenoiser`).
    schedule
        A :class:`DDIMSchedule`, or your ``diffusers`` DDIMScheduler.
    x_T
        Starting noise, shape ``(B, *event)``.
    num_inference_steps, eta, noise
        As for :class:`DDIMChain`.
    max_batch
        Evaluate the denoiser at most at this many states at once; default: what is quickest on the device of ``x_T``
        (networks on a CPU: 16).

    Returns
    -------
    ChainProblem
        For ``fixedpoint.solve``; ``solution.z[:, -1]`` are the images.
    """
    if not isinstance(schedule, DDIMSchedule):
        schedule = DDIMSchedule.from_scheduler(schedule)
    if noise is not None and (noise.shape[0] != x_T.shape[0] or noise.shape[2:] != x_T.shape[1:]):
        raise ValueError(
            f"noise must have shape ({x_T.shape[0]}, {num_inference_steps}, *{tuple(x_T.shape[1:])}) to go with x_T, "
            f"got {tuple(noise.shape)}"
        )
    chain = DDIMChain(denoiser, schedule, num_inference_steps, eta=eta, noise=noise)
    rows = chain.denoiser.rows
    if rows is not None and rows < x_T.shape[0]:
        raise ValueError(f"the denoiser is conditioned for {rows} rows, x_T has {x_T.shape[0]}")
    return ChainProblem(chain, x_T, max_batch=max_batch or chain.denoiser.quick_batch(x_T.device))


def _column(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))
