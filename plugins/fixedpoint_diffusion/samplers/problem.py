"""``sampling_problem`` and ``ddim_problem``: the entry points for sampling, from a model and noise to a problem."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.problem import ChainProblem
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.samplers.chains import MultistepChain, SamplerChain
from fixedpoint_diffusion.samplers.ddim import DDIMChain
from fixedpoint_diffusion.samplers.probe import sampler_tables
from fixedpoint_diffusion.samplers.recurrence import SamplerTables
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule, is_ddim
from fixedpoint_diffusion.schedules.timesteps import Timesteps

__all__ = ["ddim_problem", "problem_of_tables", "sampling_problem"]

# The arguments of ``DDIMScheduler.step`` that a DDIM chain has.
_DDIM_STEP = ("eta", "use_clipped_model_output")


def sampling_problem(
    denoiser: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any],
    scheduler: Any,
    x_T: Float[Tensor, "B *event"],
    *,
    num_inference_steps: int | None = None,
    timesteps: Sequence[float] | Tensor | NDArray[Any] | None = None,
    sigmas: Sequence[float] | Tensor | NDArray[Any] | None = None,
    noise: Float[Tensor, "B M *event"] | None = None,
    step_kwargs: Mapping[str, Any] | None = None,
    max_batch: int | None = None,
    **set_timesteps_kwargs: Any,
) -> ChainProblem:
    """The problem whose solution is what a scheduler of diffusers samples.

    A sampler without memory becomes a :class:`SamplerChain`, one with memory a :class:`MultistepChain`, from the tables
    that :func:`~fixedpoint_diffusion.sampler_tables` finds. A ``diffusers.DDIMScheduler``, which may clip and takes any
    timesteps, becomes a :class:`DDIMChain`, as by :func:`ddim_problem`.

    Parameters
    ----------
    denoiser
        A function ``g(x, timestep)``, a network such as those of ``diffusers``, or a :class:`Denoiser`. It predicts
        what the scheduler's ``prediction_type`` says. The timesteps have the scheduler's dtype: some schedulers
        evaluate their network at fractional ones, and some at the same one twice.
    scheduler
        A scheduler of diffusers, or any object with its interface; it is not changed.
    x_T
        Unit noise, shape ``(B, *event)``, of a floating-point dtype. The problem scales it by ``init_noise_sigma`` as
        the scheduler does.
    num_inference_steps, timesteps, sigmas, step_kwargs, **set_timesteps_kwargs
        As for :func:`~fixedpoint_diffusion.sampler_tables`.
    noise
        Unit noise for each of the ``M`` draws of the sampler, shape ``(B, M, *event)``. Required if the sampler is
        stochastic; otherwise it has no effect. Without it, the error message says how many draws there are.
    max_batch
        As for :func:`ddim_problem`.

    Returns
    -------
    ChainProblem
        For ``fixedpoint.solve``. ``solution.z`` are the later inputs of the network and then the sample, shape ``(B, K,
        *event)``. ``solution.z[:, -1]`` are the samples. ``solution.samples`` are the scheduler's own states after each
        of its ``K`` steps.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, and for schedulers that are not affine. The denoiser is not evaluated before
        these checks.
    """
    _check_start(x_T)
    if step_kwargs is not None and not isinstance(step_kwargs, Mapping):
        raise TypeError(f"step_kwargs must be a mapping of names to values, got {type(step_kwargs).__name__}")
    _check_noise(noise)
    step_kwargs = step_kwargs or {}
    if is_ddim(scheduler):
        given = {"sigmas": sigmas, **set_timesteps_kwargs, **step_kwargs}
        unknown = [name for name, value in given.items() if value is not None and name not in _DDIM_STEP]
        if unknown:
            raise ValueError(f"a DDIM chain takes no {unknown[0]}")
        chosen: dict[str, Any] = {name: value for name, value in step_kwargs.items() if value is not None}
        chosen["timesteps"] = timesteps
        ddim = DDIMChain(denoiser, scheduler, num_inference_steps, noise=noise, **chosen)
        return _joined(ddim, x_T, noise, max_batch)
    tables = sampler_tables(
        scheduler,
        num_inference_steps,
        timesteps=timesteps,
        sigmas=sigmas,
        step_kwargs=step_kwargs,
        **set_timesteps_kwargs,
    )
    return problem_of_tables(denoiser, tables, x_T, noise, max_batch)


def problem_of_tables(
    denoiser: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any],
    tables: SamplerTables,
    x_T: Float[Tensor, "B *event"],
    noise: Float[Tensor, "B M *event"] | None = None,
    max_batch: int | None = None,
) -> ChainProblem:
    """As :func:`sampling_problem`, for a sampler whose tables are known."""
    noise = noise.to(x_T) if noise is not None and tables.stochastic else None  # otherwise it has no effect
    made = SamplerChain if tables.history == 1 else MultistepChain
    return _joined(made(denoiser, tables, noise), float(tables.starts[0]) * x_T, noise, max_batch)


def ddim_problem(
    denoiser: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any],
    schedule: DDIMSchedule | Any,
    x_T: Float[Tensor, "B *event"],
    *,
    num_inference_steps: int | None = None,
    timesteps: Timesteps | None = None,
    eta: float = 0.0,
    noise: Float[Tensor, "B N *event"] | None = None,
    max_batch: int | None = None,
) -> ChainProblem:
    """The problem whose solution is the trajectory of a DDIM chain.

    Parameters
    ----------
    denoiser
        A function ``g(x, timestep)``, a network such as those of ``diffusers``, or a :class:`Denoiser`. For
        conditioning and guidance, pass a :class:`~fixedpoint_diffusion.NetworkDenoiser`.
    schedule
        A :class:`DDIMSchedule`, or a ``diffusers.DDIMScheduler`` with or without timesteps set on it. Other schedulers
        raise a ``TypeError`` that says what to pass.
    x_T
        Starting noise, shape ``(B, *event)``, of a floating-point dtype.
    num_inference_steps, timesteps, eta, noise
        As for :class:`DDIMChain`. The first two take precedence over the timesteps that were set on the scheduler;
        without either there are 50 steps. ``problem.chain.route`` holds the timesteps.
    max_batch
        Largest number of states in one call of the denoiser. Default: the number that is fastest on the device of
        ``x_T`` (16 for networks on a CPU).

    Returns
    -------
    ChainProblem
        For ``fixedpoint.solve``; ``solution.z[:, -1]`` are the images, shape ``(B, *event)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described. The denoiser is not evaluated before these checks.

    Warns
    -----
    UserWarning
        If the chain has fewer steps than requested, which happens with ``timesteps="quadratic"``.
    """
    _check_start(x_T)
    _check_noise(noise)
    chain = DDIMChain(denoiser, schedule, num_inference_steps, timesteps=timesteps, eta=eta, noise=noise)
    return _joined(chain, x_T, noise, max_batch)


def _check_start(x_T: Any) -> None:
    if not isinstance(x_T, Tensor):
        raise TypeError(f"x_T must be a tensor of shape (B, *event), got {type(x_T).__name__}")
    if not x_T.is_floating_point():
        raise TypeError(f"x_T must be of a floating-point dtype, got {x_T.dtype}")


def _check_noise(noise: Any) -> None:
    if noise is None:
        return
    if not isinstance(noise, Tensor):
        raise TypeError(f"noise must be a tensor of shape (B, M, *event), got {type(noise).__name__}")
    if not noise.is_floating_point():
        raise TypeError(f"noise must be of a floating-point dtype, got {noise.dtype}")
    bad = int((~noise.isfinite()).sum())
    if bad:
        raise ValueError(f"noise must be finite, got {bad} entries that are NaN or Inf")


def _joined(
    chain: DDIMChain | SamplerChain | MultistepChain, start: Tensor, noise: Tensor | None, max_batch: int | None
) -> ChainProblem:
    """The problem, after checks of what has to go together."""
    if isinstance(chain, DDIMChain) and chain.route.note:
        warnings.warn(chain.route.note, stacklevel=3)
    if noise is not None and (noise.shape[0] != start.shape[0] or noise.shape[2:] != start.shape[1:]):
        raise ValueError(
            f"noise must have shape ({start.shape[0]}, {noise.shape[1]}, *{tuple(start.shape[1:])}) to go with x_T, "
            f"got {tuple(noise.shape)}"
        )
    rows = chain.denoiser.rows
    if rows is not None and rows != start.shape[0]:
        raise ValueError(f"the denoiser is conditioned for {rows} rows, x_T has {start.shape[0]}")
    if max_batch is None:
        max_batch = chain.denoiser.quick_batch(start.device)
    return ChainProblem(chain, start, max_batch=max_batch)
