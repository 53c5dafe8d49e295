"""``ddim_problem``: the public entry point for sampling, from a model, a schedule and noise to a problem."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.problem import ChainProblem
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.samplers.ddim import DDIMChain
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule
from fixedpoint_diffusion.schedules.timesteps import Timesteps

__all__ = ["ddim_problem"]


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
    if not isinstance(x_T, Tensor):
        raise TypeError(f"x_T must be a tensor of shape (B, *event), got {type(x_T).__name__}")
    chain = DDIMChain(denoiser, schedule, num_inference_steps, timesteps=timesteps, eta=eta, noise=noise)
    if chain.route.note:
        warnings.warn(chain.route.note, stacklevel=2)
    if noise is not None and (noise.shape[0] != x_T.shape[0] or noise.shape[2:] != x_T.shape[1:]):
        raise ValueError(
            f"noise must have shape ({x_T.shape[0]}, {chain.length}, *{tuple(x_T.shape[1:])}) to go with x_T, "
            f"got {tuple(noise.shape)}"
        )
    rows = chain.denoiser.rows
    if rows is not None and rows != x_T.shape[0]:
        raise ValueError(f"the denoiser is conditioned for {rows} rows, x_T has {x_T.shape[0]}")
    if max_batch is None:
        max_batch = chain.denoiser.quick_batch(x_T.device)
    return ChainProblem(chain, x_T, max_batch=max_batch)
