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
from fixedpoint_diffusion.samplers.schedulers import DDIMSchedule, schedule_of
from fixedpoint_diffusion.samplers.tables import coefficient_tables
from fixedpoint_diffusion.samplers.timesteps import Timesteps, route_of

__all__ = ["DDIMChain"]


class DDIMChain(Chain, HasCoefficients, HasGaussianSlopes, HasNoInverse, HasCoarse, HasJumps, HasExtension, HasCostKey):
    """``N`` DDIM steps of a model, from noise to image.

    Parameters
    ----------
    denoiser
        A function ``g(x, timestep)`` of states ``(P, *event)`` and timesteps ``(P,)``, or a :class:`Denoiser`.
    schedule
        The noise schedule, or a ``diffusers.DDIMScheduler``.
    num_inference_steps
        ``N``: so many timesteps, laid out and stepped as ``DDIMScheduler.set_timesteps`` and ``step`` do. Default: what
        the scheduler was set to, as it would step; else 50.
    timesteps
        The timesteps themselves, from noise to image: each step leads to the next one, the last to the end. Or
        ``"quadratic"``: :func:`~fixedpoint_diffusion.quadratic_timesteps`. What is given here goes before
        what a scheduler was set to.
    eta
        0: deterministic DDIM; 1: ancestral sampling; from 0 to 1.
    noise
        Shape ``(B, N, *event)``: standard normal noise of every row and step; wanted when ``eta > 0``.
    use_clipped_model_output
        Derive eps anew from the clipped clean image.

    Raises
    ------
    ValueError
        For an eta out of range, missing or misshapen noise, more steps than timesteps, timesteps that are not strictly
        decreasing integers of the training or not ``num_inference_steps``, or a prediction type that cannot be stepped:
        eps says nothing about the image where there is no signal (zero terminal SNR).
    TypeError
        For a schedule or denoiser that cannot be taken, saying what to pass.
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
        self.noise = noise if eta > 0 else None
        signal, later = self.route.levels(schedule)
        if schedule.prediction_type == "epsilon" and bool((signal == 0).any()):
            raise ValueError(
                "prediction_type='epsilon' cannot be stepped from a state without signal (zero terminal SNR); "
                "take 'v_prediction' or 'sample'"
            )
        self.steps = StepCoefficients.ddim(self.route.tensor(), signal, later, eta)
        self._tables: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
        self._extensions: dict[torch.device, Extension] = {}

    def coefficients(self) -> Float[Tensor, " N"]:
        """``sqrt(ab' / ab)``: the coefficient of ``x`` in the epsilon form of each step, float64."""
        return self.steps.x0_weight / self.steps.signal.sqrt()

    def cost_key(self) -> tuple[object, Hashable]:
        """Chains of the same network take the same time a step."""
        return self.denoiser.cost_key()

    def gaussian_slopes(self, variance: float) -> Float[Tensor, " N"]:
        """The slope of each step where the data is one Gaussian, float64; clipping is left out of account."""
        if not variance > 0:
            raise ValueError(f"variance must be positive, got {variance}")
        return self.steps.gaussian_slopes(variance)

    def no_inverse(self) -> str | None:
        """Clipping and thresholding take away what an inverse would have to give back."""
        if not self.schedule.clips:
            return None
        which = "dynamic thresholding" if self.schedule.thresholding else "clip_sample"
        return f"{which} is not invertible; take a schedule with clip_sample=False and thresholding=False"

    def coarse(self, kept: Int[Tensor, " n"]) -> DDIMChain:
        """Fewer, longer steps between some of the states, each with the noise of the steps it stands for.

        A jump is what its steps would make of the clean image predicted at the first of them (see
        ``fixedpoint_diffusion.samplers.jumps``): for eta = 0 the DDIM step between the two noise levels.

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
        chain.length, chain.steps = len(kept), self.steps.jumps(kept)
        chain._tables, chain._extensions = {}, {}
        if self.noise is not None:
            chain.noise = self.steps.arriving(self.noise, kept)[:, kept - 1]
        return chain

    def jumps(self, x0: Float[Tensor, "B *event"], row: Int[Tensor, " B"]) -> Float[Tensor, "B N *event"]:
        """Every state as the one jump from ``x_0`` to it: one evaluation of the denoiser per row."""
        image, noise = (part.unsqueeze(1) for part in self._predicted(x0, torch.zeros_like(row), row))
        steps = self.steps.from_start()
        along = (1, -1, *[1] * (x0.ndim - 1))
        states = steps.x0_weight.to(x0).view(along) * image + steps.direction.to(x0).view(along) * noise
        if self.noise is not None:
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
        """State ``target`` as the one jump from state ``index``, whose step made ``value`` of it.

        The clean image and the noise are those that the step has effectively used: the pair of which both ``x`` and
        ``value`` are mixed (see ``fixedpoint_diffusion.samplers.extension``). For a prediction that is used as it is,
        or with ``use_clipped_model_output``, they are the model's, and the jump is that of :meth:`jumps` and
        :meth:`coarse`. Where the clean image is clipped and the noise is not, ``x`` is no mixture of these two, and the
        jump is another one.

        The pair follows from the difference between two neighbouring states, so that longer jumps multiply the
        roundings of the states. In float32 at N = 1000, relative to the state jumped to from the start: at most 1e-3 at
        state 100, 1e-2 at state 500, and 0.1 at the image, of which little is left in the start; in float64 a
        hundred-millionth of that.

        Parameters
        ----------
        x, value
            States and what their steps made of them; of one shape and dtype.
        index
            Of each pair's step, 0 to ``N - 1``.
        target
            Number of the state jumped to, ``index + 1`` to ``N``; not checked.
        row
            Which row of the noise each pair has.

        Raises
        ------
        ValueError
            For a ``value`` of another shape or dtype than ``x``.
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
        """The clean image, clipped if it is to be, and the noise."""
        at, prediction = self._at(x, index), self._prediction(x, index, row)
        if self.schedule.clips:
            return self._clipped(x, prediction, at)
        return at["image_x"] * x + at["image_out"] * prediction, at["noise_x"] * x + at["noise_out"] * prediction

    def _clipped(self, x: Tensor, prediction: Tensor, at: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        image = at["image_x"] * x + at["image_out"] * prediction
        noise = at["noise_x"] * x + at["noise_out"] * prediction
        image = clipped(image, self.schedule)
        if self.use_clipped_model_output:
            noise = (x - at["root_signal"] * image) / at["root_noise"]
        return image, noise

    def _at(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {name: _column(values[index], x) for name, values in self._table(x).items() if name != "timestep"}

    def _table(self, x: Tensor) -> dict[str, Tensor]:
        """Coefficients of every step, computed in float64 and rounded once to the state's dtype."""
        key = (x.device, x.dtype)
        if key not in self._tables:
            tables = coefficient_tables(self.steps, self.schedule.prediction_type)
            table = {name: values.to(x.device, x.dtype) for name, values in tables.items()}
            self._tables[key] = {**table, "timestep": self.steps.timestep.to(x.device)}
        return self._tables[key]


def _column(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))
