"""``invert``: the public entry point for inversion, which finds the noise of images for a model and a schedule.

    inversion = invert(denoiser, schedule, images, num_inference_steps=50)
    problem = ddim_problem(denoiser, schedule, inversion.latents, num_inference_steps=50)

makes a problem whose samples are the images. Sampling the latents with another class or guidance edits the images.
Sampling latents between those of two images, from :func:`slerp`, interpolates between the images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.capabilities import HasNoInverse
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.inversion.invert import Inversion, InversionProgress, InversionStatus, invert_chain
from fixedpoint.chains.inversion.methods import Inverter, JointInversion, StepwiseInversion
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.inversion.invertible import check_invertible
from fixedpoint_diffusion.samplers.request import RequestError, TabledSampler, requested, without_clipping
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule
from fixedpoint_diffusion.schedules.timesteps import Timesteps

__all__ = [
    "Inversion",
    "InversionProgress",
    "InversionStatus",
    "JointInversion",
    "StepwiseInversion",
    "invert",
    "slerp",
]


def invert(
    denoiser: Denoiser | torch.nn.Module | Callable[[Tensor, Tensor], Any],
    schedule: DDIMSchedule | Any,
    images: Float[Tensor, "B *event"],
    *,
    num_inference_steps: int | None = None,
    timesteps: Timesteps | None = None,
    sigmas: Sequence[float] | None = None,
    eta: float = 0.0,
    noise: Float[Tensor, "B N *event"] | None = None,
    method: Inverter | None = None,
    clipping: Literal["refuse", "ignore"] = "refuse",
    max_batch: int | None = None,
    tolerance: float = 2e-3,
    on_round: Callable[[InversionProgress], None] | None = None,
) -> Inversion:
    """Find the noise ``x_T`` whose samples are the given images.

    Parameters
    ----------
    denoiser, num_inference_steps, timesteps, eta, noise, max_batch
        As for :func:`~fixedpoint_diffusion.ddim_problem`; conditioning and guidance are those of the denoiser.
    schedule
        A :class:`DDIMSchedule`, a ``diffusers.DDIMScheduler``, or any other scheduler of diffusers without a memory, as
        for :func:`~fixedpoint_diffusion.sampling_problem`: one whose every step needs the result of the step before it
        alone (``EulerDiscreteScheduler``, ``FlowMatchEulerDiscreteScheduler``).
    sigmas
        Noise levels, for a scheduler whose ``set_timesteps`` takes them.
    images
        Shape ``(B, *event)``, float32 or float64, in the range that the model was trained on, usually [-1, 1].
    method
        The method of inversion; default :class:`JointInversion`.
    clipping
        What to do if the schedule clips or thresholds, in which case the chain has no inverse. ``"refuse"`` raises a
        ``ValueError``; ``"ignore"`` inverts the chain without clipping, and judges the result by that chain.
    tolerance
        The rms of ``reconstruction - images`` up to which an image counts as inverted; positive. The default is a
        quarter of a grey level of images in [-1, 1].
    on_round
        Called after every round.

    Returns
    -------
    Inversion
        ``latents``, which are unit noise, and ``reconstruction``; for every image the residuals of all steps, the
        misfit of the clean end, the round trip and a status.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described. Before any evaluation also for a sampler whose start an image does not
        determine: one with a memory, one that replaces the noise at every step as those of consistency models do, and a
        stochastic one without its ``noise``.
    """
    if clipping not in ("refuse", "ignore"):
        raise ValueError(f"clipping must be 'refuse' or 'ignore', got {clipping!r}")
    schedule = without_clipping(schedule) if clipping == "ignore" else schedule
    try:
        sampler = requested(schedule, num_inference_steps, timesteps, sigmas, eta)
    except RequestError as error:
        raise ValueError(f"{error.option} {error}") from None
    if sampler.note:
        warnings.warn(sampler.note, stacklevel=2)
    if isinstance(sampler, TabledSampler):
        check_invertible(sampler.tables, noise is not None)
    problem = sampler.problem(denoiser, images, noise, max_batch)
    chain = problem.chain
    assert isinstance(chain, Chain)  # others were refused as samplers with a memory
    why = chain.no_inverse() if isinstance(chain, HasNoInverse) else None
    if why is not None:
        raise ValueError(f"{why}; with clipping='ignore' the chain without it is inverted")
    inversion = invert_chain(
        chain, images, method=method, max_batch=problem.max_batch, tolerance=tolerance, on_round=on_round
    )
    scale = float(sampler.tables.starts[0]) if isinstance(sampler, TabledSampler) else 1.0
    if scale == 1.0:
        return inversion
    # The chain starts at the first input of the network, and a sampling problem at unit noise.
    states = inversion.states
    return replace(inversion, states=torch.cat([states[:, :1] / scale, states[:, 1:]], dim=1))


def slerp(
    first: Float[Tensor, "B *event"], second: Float[Tensor, "B *event"], share: float
) -> Float[Tensor, "B *event"]:
    """Interpolate between latents along the great circle, row by row (Shoemake 1985), which preserves their length.

    Parameters
    ----------
    first, second
        Latents of the same shape ``(B, *event)``.
    share
        From 0, which gives ``first``, to 1, which gives ``second``.

    Returns
    -------
    Tensor
        Shape ``(B, *event)``, of the dtype of ``first``; computed in float64.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"second must have shape {tuple(first.shape)} like first, got {tuple(second.shape)}")
    one, other = first.flatten(1).double(), second.flatten(1).double()
    lengths = one.norm(dim=1, keepdim=True), other.norm(dim=1, keepdim=True)
    cosine = ((one * other).sum(1, keepdim=True) / (lengths[0] * lengths[1])).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    along = sine.abs() < 1e-6  # nearly parallel: interpolate linearly, since the formula divides by the sine
    left = torch.where(along, 1.0 - share, torch.sin((1.0 - share) * angle) / torch.where(along, 1.0, sine))
    right = torch.where(along, share, torch.sin(share * angle) / torch.where(along, 1.0, sine))
    return (left * one + right * other).view(first.shape).to(first.dtype)
