"""What is asked of a sampler, by options: which scheduler, and in which steps. Everything is checked before any work.

A ``DDIMScheduler`` is stepped by :class:`DDIMChain`, with clipping and all of its abilities. A ``DDPMScheduler`` that
clips is ancestral DDIM whose noise is that of the clipped image, step by step. Every other scheduler is read as tables.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.problem import ChainProblem
from fixedpoint_diffusion.denoisers.convert import as_denoiser
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.samplers.ddim import DDIMChain
from fixedpoint_diffusion.samplers.probe import sampler_tables
from fixedpoint_diffusion.samplers.problem import ddim_problem, problem_of_tables
from fixedpoint_diffusion.samplers.recurrence import SamplerTables
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule, is_ddim, levels_of_config, schedule_of
from fixedpoint_diffusion.schedules.timesteps import DEFAULT_STEPS, Route, Timesteps, quadratic_timesteps, route_of

__all__ = ["DDIM_PROVIDES", "RequestError", "RequestedSampler", "TabledSampler", "requested", "without_clipping"]

DDIM_PROVIDES = frozenset({"chain", "coarse", "jumps", "extension", "coefficients", "gaussian-slopes"})
"""The abilities of :class:`DDIMChain`, by name."""

AnyDenoiser = Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any]
"""What :func:`as_denoiser` takes."""


class RequestError(ValueError):
    """A sampler cannot be had as it was asked for; the message is a sentence without its subject.

    Attributes
    ----------
    option
        Which of ``num_inference_steps``, ``timesteps``, ``sigmas``, ``eta`` and ``scheduler`` it is about.
    """

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(reason)
        self.option = option


class RequestedSampler(ABC):
    """A sampler whose steps are known; the model and the noise are not."""

    @property
    @abstractmethod
    def provides(self) -> frozenset[str]:
        """The abilities of its chains, by name."""

    @property
    @abstractmethod
    def draws(self) -> int:
        """``M``: how many images of noise a row requires beside its start; 0 for a deterministic sampler."""

    @property
    @abstractmethod
    def schedule(self) -> DDIMSchedule | None:
        """The noise levels by training timesteps; None for a scheduler that has none."""

    @property
    def note(self) -> str:
        """A sentence on how the steps differ from what was asked for; empty if they do not."""
        return ""

    @abstractmethod
    def problem(
        self,
        denoiser: AnyDenoiser,
        x_T: Float[Tensor, "B *event"],
        noise: Float[Tensor, "B M *event"] | None,
        max_batch: int | None,
    ) -> ChainProblem:
        """The problem for a model, unit noise and as many draws as :attr:`draws` says."""


@dataclass(frozen=True)
class _DDIM(RequestedSampler):
    """DDIM, for any eta."""

    own: DDIMSchedule
    route: Route
    count: int | None
    given: bool  # whether the timesteps were given, in which case each leads to the next
    eta: float

    provides = DDIM_PROVIDES

    @property
    def draws(self) -> int:
        return len(self.route) if self.eta > 0 else 0

    @property
    def schedule(self) -> DDIMSchedule:
        return self.own

    @property
    def note(self) -> str:
        return self.route.note and f"timesteps: {self.route.note}"

    def problem(self, denoiser: AnyDenoiser, x_T: Tensor, noise: Tensor | None, max_batch: int | None) -> ChainProblem:
        return ddim_problem(
            denoiser,
            self.own,
            x_T,
            num_inference_steps=None if self.given else self.count,
            timesteps=self.route.timesteps if self.given else None,
            eta=self.eta,
            noise=noise,
            max_batch=max_batch,
        )


@dataclass(frozen=True)
class _ClippedDDPM(RequestedSampler):
    """DDPM with the clean image clipped or thresholded: its mean (Ho, Jain & Abbeel 2020, eq. 7) is that of DDIM at eta
    = 1 with the noise that the clipped image implies, and so is its small variance.
    """

    own: DDIMSchedule
    timesteps: tuple[int, ...]

    provides = DDIM_PROVIDES

    @property
    def draws(self) -> int:
        return len(self.timesteps)

    @property
    def schedule(self) -> DDIMSchedule:
        return self.own

    def problem(self, denoiser: AnyDenoiser, x_T: Tensor, noise: Tensor | None, max_batch: int | None) -> ChainProblem:
        known = as_denoiser(denoiser)
        chain = DDIMChain(
            known, self.own, timesteps=self.timesteps, eta=1.0, noise=noise, use_clipped_model_output=True
        )
        quick = known.quick_batch(x_T.device) if max_batch is None else max_batch
        return ChainProblem(chain, x_T, max_batch=quick)


@dataclass(frozen=True, eq=False)
class TabledSampler(RequestedSampler):
    """Any other scheduler, by its tables.

    Attributes
    ----------
    scheduler
        The scheduler.
    settings
        Arguments of its ``set_timesteps``.
    tables
        Its recurrence.
    """

    scheduler: Any
    settings: dict[str, Any]
    tables: SamplerTables

    @property
    def provides(self) -> frozenset[str]:
        memoryless = frozenset({"coarse", "extension"}) if self.tables.history == 1 else frozenset()
        known = frozenset({"gaussian-slopes"}) if self.tables.levels is not None else frozenset()
        return frozenset({"chain", "jumps"}) | memoryless | known

    @property
    def draws(self) -> int:
        return len(self.tables.draws) if self.tables.stochastic else 0

    @property
    def schedule(self) -> DDIMSchedule | None:
        return levels_of_config(self.scheduler.config)

    def problem(self, denoiser: AnyDenoiser, x_T: Tensor, noise: Tensor | None, max_batch: int | None) -> ChainProblem:
        return problem_of_tables(denoiser, self.tables, x_T, noise, max_batch)


def requested(
    scheduler: DDIMSchedule | Any,
    num_inference_steps: int | None = None,
    timesteps: Timesteps | None = None,
    sigmas: Sequence[float] | None = None,
    eta: float = 0.0,
) -> RequestedSampler:
    """The sampler of these options.

    Parameters
    ----------
    scheduler
        A :class:`DDIMSchedule`, or a scheduler of diffusers.
    num_inference_steps
        ``N``; default: as many as ``timesteps`` or ``sigmas`` has, else 50.
    timesteps, sigmas
        The timesteps or the noise levels themselves. For DDIM each timestep leads to the next; other schedulers get
        them where their ``set_timesteps`` takes them. ``"quadratic"``: :func:`quadratic_timesteps`.
    eta
        Of DDIM and of every scheduler whose ``step`` takes it, as pipelines pass it on.

    Raises
    ------
    TypeError
        For what is no scheduler. The message says what to pass.
    RequestError
        If an option is not one of the scheduler, if the scheduler refuses it, or if it is no sampler that can be solved
        for as a whole; the message says which option.
    """
    if is_ddim(scheduler):
        return _ddim(scheduler, num_inference_steps, timesteps, sigmas, eta)
    name = type(scheduler).__name__
    if not (isinstance(getattr(scheduler, "config", None), Mapping) and hasattr(scheduler, "set_timesteps")):
        schedule_of(scheduler)  # raises, with what to pass
    if not hasattr(scheduler, "step"):
        raise RequestError("scheduler", f"cannot be {name}, which has no step, so it has no loop over timesteps")
    if "Inverse" in name:
        raise RequestError("scheduler", f"cannot be {name}, which leads from images to noise; invert does that")
    if eta > 0 and not _takes(scheduler.step, "eta"):
        raise RequestError("eta", f"must be 0: the steps of {name} take no eta, got {eta:g}")
    settings = _settings(scheduler, num_inference_steps, timesteps, sigmas)
    if _is_clipped_ddpm(scheduler):
        return _clipped_ddpm(scheduler, settings)
    step_kwargs = {"eta": eta} if _takes(scheduler.step, "eta") else {}
    try:
        tables = sampler_tables(scheduler, **settings, step_kwargs=step_kwargs)
    except (TypeError, ValueError) as error:
        raise RequestError("scheduler", f"cannot be used: {error}") from None
    return TabledSampler(scheduler, settings, tables)


def without_clipping(scheduler: Any) -> Any:
    """A schedule or scheduler as given, except that it neither clips nor thresholds the clean image."""
    if is_ddim(scheduler):
        schedule = schedule_of(scheduler)
        return replace(schedule, clip_sample=False, thresholding=False) if schedule.clips else schedule
    if not isinstance(getattr(scheduler, "config", None), Mapping):
        return scheduler
    off = {name: False for name in ("clip_sample", "thresholding", "clip_denoised") if scheduler.config.get(name)}
    return type(scheduler).from_config(scheduler.config, **off) if off else scheduler


def _ddim(
    scheduler: DDIMSchedule | Any,
    count: int | None,
    timesteps: Timesteps | None,
    sigmas: Sequence[float] | None,
    eta: float,
) -> _DDIM:
    if sigmas is not None:
        raise RequestError("sigmas", "must be null: DDIM takes timesteps only")
    schedule = schedule_of(scheduler)
    try:
        route = route_of(schedule, count, timesteps)
    except ValueError as error:
        which = "num_inference_steps" if timesteps is None else "timesteps"
        raise RequestError(which, f"cannot be had: {error}") from None
    return _DDIM(schedule, route, count, timesteps is not None, eta)


def _settings(
    scheduler: Any, count: int | None, timesteps: Timesteps | None, sigmas: Sequence[float] | None
) -> dict[str, Any]:
    """The arguments of ``set_timesteps``."""
    given = {"timesteps": timesteps, "sigmas": sigmas}
    named = [name for name, value in given.items() if value is not None]
    for name in named:
        if not _takes(scheduler.set_timesteps, name):
            raise RequestError(name, f"must be null: {type(scheduler).__name__} takes no {name}, only their number")
    if len(named) == 2:
        raise RequestError("sigmas", "must be null where timesteps are given")
    if not named:  # without a number, those that were set on the scheduler, if any
        return {} if count is None else {"num_inference_steps": count}
    if isinstance(timesteps, str):
        if timesteps != "quadratic":
            raise RequestError("timesteps", f"must be a list of integers or 'quadratic', got {timesteps!r}")
        total = int(scheduler.config.get("num_train_timesteps", 1000))
        return {"timesteps": list(quadratic_timesteps(DEFAULT_STEPS if count is None else count, total))}
    chosen: Any = given[named[0]]
    values = chosen.tolist() if hasattr(chosen, "tolist") else list(chosen)
    if count not in (None, len(values)):
        raise RequestError(named[0], f"are {len(values)}, which does not go with num_inference_steps = {count}")
    return {named[0]: values}


def _is_clipped_ddpm(scheduler: Any) -> bool:
    config = scheduler.config
    plain = config.get("variance_type") in ("fixed_small", "fixed_small_log")
    clips = config.get("clip_sample") or config.get("thresholding")
    return type(scheduler).__name__ == "DDPMScheduler" and plain and bool(clips)


def _clipped_ddpm(scheduler: Any, settings: dict[str, Any]) -> _ClippedDDPM:
    schedule = levels_of_config(scheduler.config)
    if schedule is None:
        raise RequestError("scheduler", "cannot be used: DDPMScheduler clips, and its betas are not those of DDIM")
    planned = type(scheduler).from_config(scheduler.config)
    default = {"num_inference_steps": scheduler.num_inference_steps or DEFAULT_STEPS}
    try:
        planned.set_timesteps(**(settings or default))
        timesteps = schedule.checked_timesteps(planned.timesteps)
    except ValueError as error:
        raise RequestError(next(iter(settings), "scheduler"), f"cannot be had: {error}") from None
    return _ClippedDDPM(schedule, timesteps)


def _takes(method: Any, name: str) -> bool:
    return name in inspect.signature(method).parameters
