"""The entry for people: the noise of an image, for their model and schedule.

    inversion = invert(denoiser, schedule, images, num_inference_steps=50)
    problem = ddim_problem(denoiser, schedule, inversion.latents, num_inference_steps=50)

makes a problem whose samples are the images. With the latents of one class, or one guidance, sampled with another an
image is edited; latents between those of two images, by :func:`slerp`, are images between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fixedpoint.chains.inversion.invert import Inversion, InversionProgress, InversionStatus, invert_chain
from fixedpoint.chains.inversion.methods import Inverter, JointInversion, StepwiseInversion
from fixedpoint_diffusion.denoisers.denoiser import Denoiser
from fixedpoint_diffusion.samplers.ddim import DDIMChain
from fixedpoint_diffusion.samplers.problem import ddim_problem
from fixedpoint_diffusion.samplers.schedulers import DDIMSchedule, schedule_of
from fixedpoint_diffusion.samplers.timesteps import Timesteps

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
    eta: float = 0.0,
    noise: Float[Tensor, "B N *event"] | None = None,
    method: Inverter | None = None,
    clipping: Literal["refuse", "ignore"] = "refuse",
    max_batch: int | None = None,
    tolerance: float = 2e-3,
    on_round: Callable[[InversionProgress], None] | None = None,
) -> Inversion:
    """The noise ``x_T`` whose DDIM samples are the images.

    Parameters
    ----------
    denoiser, schedule, num_inference_steps, timesteps, eta, noise, max_batch
        As for :func:`~fixedpoint_diffusion.ddim_problem`; conditioning and guidance are the denoiser's.
    images
        Shape ``(B, *event)``, in the range the model was trained on (as a rule [-1, 1]), float32 or float64.
    method
        How; default :class:`JointInversion`.
    clipping
        What happens where the schedule clips or thresholds, which has no inverse: ``"refuse"`` it, or ``"ignore"`` the
        clipping: the chain without it is inverted, and judged.
    tolerance
        The rms of ``reconstruction - images`` within which an image counts as inverted; default: a quarter of a grey
        level of images in [-1, 1].
    on_round
        Told after every round.

    Returns
    -------
    Inversion
        ``latents``, ``reconstruction``, and image by image the residual of every step, what the clean end leaves over,
        the round trip and a status.

    Raises
    ------
    TypeError, ValueError
        For anything that is not as described.
    """
    if clipping not in ("refuse", "ignore"):
        raise ValueError(f"clipping must be 'refuse' or 'ignore', got {clipping!r}")
    schedule = schedule_of(schedule)
    if schedule.clips and clipping == "ignore":
        schedule = replace(schedule, clip_sample=False, thresholding=False)
    problem = ddim_problem(
        denoiser,
        schedule,
        images,
        num_inference_steps=num_inference_steps,
        timesteps=timesteps,
        eta=eta,
        noise=noise,
        max_batch=max_batch,
    )
    chain = problem.chain
    assert isinstance(chain, DDIMChain)
    why = chain.no_inverse()
    if why is not None:
        raise ValueError(f"{why}; with clipping='ignore' the chain without it is inverted")
    return invert_chain(
        chain, images, method=method, max_batch=problem.max_batch, tolerance=tolerance, on_round=on_round
    )


def slerp(
    first: Float[Tensor, "B *event"], second: Float[Tensor, "B *event"], share: float
) -> Float[Tensor, "B *event"]:
    """Latents between two, row by row, along the great circle (Shoemake 1985): of the length noise has.

    Parameters
    ----------
    first, second
        Latents.
    share
        0: the first; 1: the second.
    """
    if first.shape != second.shape:
        raise ValueError(f"second must have shape {tuple(first.shape)} like first, got {tuple(second.shape)}")
    one, other = first.flatten(1).double(), second.flatten(1).double()
    lengths = one.norm(dim=1, keepdim=True), other.norm(dim=1, keepdim=True)
    cosine = ((one * other).sum(1, keepdim=True) / (lengths[0] * lengths[1])).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    along = sine.abs() < 1e-6  # as good as parallel
    left = torch.where(along, 1.0 - share, torch.sin((1.0 - share) * angle) / torch.where(along, 1.0, sine))
    right = torch.where(along, share, torch.sin(share * angle) / torch.where(along, 1.0, sine))
    return (left * one + right * other).view(first.shape).to(first.dtype)
