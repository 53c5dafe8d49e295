"""``sampler.invert``: the latents from which a pipeline makes given images, with its prompt and its guidance.

    inversion = sampler.invert(image, "a cat", num_inference_steps=50)
    sampler("a dog", latents=inversion.latents, num_inference_steps=50)     the image, edited

The chain that is inverted is that of the pipeline's call, guidance included.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from fixedpoint.chains.capabilities import HasNoInverse
from fixedpoint.chains.chain import Chain
from fixedpoint.chains.inversion.invert import Inversion, InversionProgress, InversionStatus, invert_chain
from fixedpoint.chains.inversion.methods import Inverter, JointInversion
from fixedpoint_diffusion.inversion.invertible import check_invertible
from fixedpoint_diffusion.pipelines.autoencoder import decoding_of, encoded, pixels_of
from fixedpoint_diffusion.pipelines.chains import Form, Formed, PipelineDenoiser, formed
from fixedpoint_diffusion.pipelines.loop import Loop
from fixedpoint_diffusion.pipelines.probe import examine
from fixedpoint_diffusion.pipelines.replay import Replay
from fixedpoint_diffusion.samplers.chains import SamplerChain
from fixedpoint_diffusion.schedules.by_name import settings_of

__all__ = ["InvertOptions", "NoInverseError", "PipelineInversion", "invert_call"]

# Guidance and a trained network make the last steps nearly singular: 20 evaluations leave 2e-3 of its own samples.
_CLEAN_ROUNDS = 60
_CLIPS = ("clip_sample", "thresholding", "clip_denoised")


class NoInverseError(ValueError):
    """Raised for a scheduler that has no inverse; the message says which scheduler to take in its place.

    Attributes
    ----------
    reason
        The sentence without what to take.
    instead
        The class that can be inverted and has the same noise levels.
    """

    def __init__(self, reason: str, instead: str) -> None:
        super().__init__(f"{reason}; pipe.scheduler = {instead}.from_config(pipe.scheduler.config) can be inverted")
        self.reason, self.instead = reason, instead


@dataclass(frozen=True)
class PipelineInversion:
    """The latents that were found for some images, and what the pipeline makes of them.

    Attributes
    ----------
    latents
        What to pass to the pipeline as ``latents=``: unit noise, in the pipeline's own shape and dtype.
    noise
        What to pass to the sampler as ``noise=``, for a scheduler that adds noise; None for others.
    target
        The images as samples of the pipeline, as ``output_type="latent"`` returns them; float32.
    reconstruction
        The samples that the pipeline's steps make of the latents; float32, of the shape of ``target``.
    output
        What the pipeline itself returns for the reconstruction: its images are in ``output.images``.
    inversion
        The states and residuals of all steps, the clean end, and the counts; all in units of the samples. With an
        autoencoder these are its latents, and what it loses of an image is not contained.
    """

    latents: Tensor
    noise: Tensor | None
    target: Tensor
    reconstruction: Tensor
    output: Any
    inversion: Inversion

    @property
    def round_trip(self) -> Float[Tensor, " B"]:
        """Shape ``(B,)``, float64: rms of ``reconstruction - target``."""
        return self.inversion.round_trip

    @property
    def status(self) -> tuple[InversionStatus, ...]:
        """How each image ended."""
        return self.inversion.status

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Shape ``(B,)``: whether the round trip is within the tolerance."""
        return self.inversion.succeeded

    @property
    def sentences(self) -> tuple[str, ...]:
        """One text per image: how it ended, with its errors."""
        return self.inversion.sentences

    @property
    def message(self) -> str:
        """One line per status that occurred."""
        return self.inversion.message

    @property
    def rounds(self) -> int:
        """The number of rounds, each of which waits once for the network; with those of the round trip."""
        return self.inversion.rounds

    def __repr__(self) -> str:
        return f"Pipeline{self.inversion!r}"


@dataclass(frozen=True)
class InvertOptions:
    """The arguments of ``invert`` that are not the pipeline's; see :meth:`ParallelPipeline.invert`."""

    input_type: Literal["image", "latent"] | None = None
    noise: Tensor | None = None
    method: Inverter | None = None
    clipping: Literal["refuse", "ignore"] = "refuse"
    tolerance: float = 1e-3
    on_round: Callable[[InversionProgress], None] | None = None

    def check(self) -> None:
        """Check them.

        Raises
        ------
        TypeError, ValueError
            If one is not as described.
        """
        if self.input_type not in (None, "image", "latent"):
            raise ValueError(f"input_type must be 'image' or 'latent', got {self.input_type!r}")
        if self.clipping not in ("refuse", "ignore"):
            raise ValueError(f"clipping must be 'refuse' or 'ignore', got {self.clipping!r}")
        if self.method is not None and not isinstance(self.method, Inverter):
            raise TypeError(f"method must be an Inverter, JointInversion() say, got {self.method!r}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance!r}")


@torch.no_grad()
def invert_call(
    replay: Replay,
    images: Any,
    options: InvertOptions,
    most: int | None,
    form: Form | None,
    told_noise: Callable[[Loop, Tensor], None],
    deliver: Callable[[Formed, Tensor], Any],
) -> PipelineInversion:
    """Invert the call of a pipeline.

    Parameters
    ----------
    replay
        The call.
    images
        The images.
    options
        The other arguments.
    most, form
        As for ``parallel``.
    told_noise
        Checks the noise of the user's, and gives it to the loop.
    deliver
        Makes the pipeline's own output of the pipeline's samples after each step.

    Raises
    ------
    TypeError, ValueError
        As for :meth:`ParallelPipeline.invert`.
    """
    options.check()
    given = inspect.signature(replay.call).bind(replay.pipe, *replay.args, **replay.kwargs).arguments
    if given.get("latents") is not None:
        raise ValueError("invert finds the latents, so none can be given; samples to invert are images, the first one")
    replay.scheduler = _unclipped(replay.pipe, options.clipping)
    examined = examine(replay, most)
    loop = examined.loop
    if loop.scale is None or loop.layout.each != 1:
        raise ValueError(
            f"{_name(replay.pipe)} takes no latents to begin with, so there would be nothing to do with those of an "
            "image; invert(network, scheduler, images) of fixedpoint_diffusion inverts a network by itself"
        )
    if options.noise is not None:
        told_noise(loop, options.noise)
    made = formed(examined, None if form == "predictions" else form, opaque=True)
    chain = _invertible(made, replay, known=options.noise is not None or given.get("generator") is not None)
    target = _targets(loop, images, options.input_type)
    last, first = _factors(made)
    inversion = invert_chain(
        chain,
        target / last[-1],
        method=options.method or JointInversion(clean_rounds=_CLEAN_ROUNDS, rescue=True),
        max_batch=made.problem.max_batch,
        tolerance=options.tolerance / abs(last[-1]),
        on_round=options.on_round,
    )
    inversion = _in_samples(inversion, last, first)
    replay.scheduler = None  # what is delivered leaves its traces in the pipeline's own
    states = torch.cat([inversion.states[:, 1:], inversion.reconstruction.unsqueeze(1)], dim=1)
    return PipelineInversion(
        latents=(loop.layout.samples(inversion.latents) / loop.scale).to(loop.steps[0].sample.dtype),
        noise=loop.drawn_noise() if loop.noise is None else loop.noise,
        target=target,
        reconstruction=inversion.reconstruction,
        output=deliver(made, states),
        inversion=inversion,
    )


def _name(pipe: Any) -> str:
    return type(pipe).__name__


def _unclipped(pipe: Any, clipping: str) -> Any:
    """Return a scheduler without clipping for one that clips; None for others, which stay what they are."""
    scheduler = pipe.scheduler
    config: Mapping[str, Any] = getattr(scheduler, "config", {})
    clips = [name for name in _CLIPS if config.get(name) and name in settings_of(type(scheduler))]
    if not clips:
        return None
    if clipping == "refuse":
        raise ValueError(
            f"{type(scheduler).__name__} of {_name(pipe)} clips the predicted image ({clips[0]}=True), which has no "
            "inverse; with clipping='ignore' the chain without it is inverted"
        )
    return type(scheduler).from_config(scheduler.config, **dict.fromkeys(clips, False))


def _invertible(made: Formed, replay: Replay, known: bool) -> Chain:
    """Return the chain of a loop, which must be one without memory and without unknown noise."""
    chain, scheduler = made.problem.chain, type(replay.pipe.scheduler).__name__
    flows = "Flow" in scheduler or replay.pipe.scheduler.config.get("use_flow_sigmas", False)
    instead = "FlowMatchEulerDiscreteScheduler" if flows else "DDIMScheduler"
    if not isinstance(chain, Chain):
        raise NoInverseError(f"{scheduler} remembers more than its last sample, so an image has not one start", instead)
    if made.loop.drawn_noise() is not None and not known:
        said = (
            f"{scheduler} as it is set adds noise at every step, another one in each call; give noise= or a generator"
        )
        raise NoInverseError(said, instead)
    if made.tables is not None:
        try:
            check_invertible(made.tables, noise=True)
        except ValueError as error:
            raise NoInverseError(str(error), instead) from None
    why = chain.no_inverse() if isinstance(chain, HasNoInverse) else None
    if why is not None:
        raise ValueError(why)
    return chain


def _targets(loop: Loop, images: Any, input_type: str | None) -> Float[Tensor, "B *event"]:
    """Return images as the pipeline's samples."""
    event = tuple(loop.start.shape[1:])
    pipe: Any = loop.replay.pipe
    if input_type == "latent":
        return _checked(loop, images)
    decoding = decoding_of(loop)
    if decoding is None:
        pixels = pixels_of(images, event[0], None)
        return _checked(loop, pixels.to(loop.start.device))
    alike = isinstance(images, Tensor) and event in (tuple(images.shape), tuple(images.shape[1:]))
    if alike and input_type is None:  # what the pipeline returns as output_type="latent"
        return _checked(loop, images)
    model: Any = decoding.decoder
    pixels = pixels_of(images, int(model.config.get("in_channels", 3)), getattr(pipe, "image_processor", None))
    _check_count(loop, len(pixels))
    latents = encoded(decoding, pixels)
    if tuple(latents.shape[1:]) != decoding.shape:
        raise ValueError(_other_size(pixels, latents, decoding.shape))
    return _checked(loop, decoding.samples(latents, event).to(loop.start.device))


def _other_size(pixels: Tensor, latents: Tensor, wanted: tuple[int, ...]) -> str:
    height, width = pixels.shape[2:]
    if latents.ndim != 4 or latents.shape[1] != wanted[0]:
        return f"the autoencoder encodes images as {tuple(latents.shape[1:])}, and decodes {wanted}"
    tall, wide = (
        size * to // own for size, to, own in zip((height, width), wanted[1:], latents.shape[2:], strict=True)
    )
    return (
        f"images have {width} x {height} pixels, and this call makes {wide} x {tall}; pass height={height} and "
        f"width={width} if the pipeline takes them, or resize the images"
    )


def _checked(loop: Loop, samples: Any) -> Float[Tensor, "B *event"]:
    """Check samples that the user gave, or that images were encoded as."""
    event = tuple(loop.start.shape[1:])
    if not isinstance(samples, Tensor) or not samples.is_floating_point():
        said = f"of {samples.dtype}" if isinstance(samples, Tensor) else type(samples).__name__
        raise TypeError(f"samples must be a floating-point tensor, got one {said}")
    samples = samples.detach().unsqueeze(0) if tuple(samples.shape) == event else samples.detach()
    if tuple(samples.shape[1:]) != event:
        raise ValueError(
            f"this call has samples of shape (B, {', '.join(map(str, event))}), got {tuple(samples.shape)}"
        )
    _check_count(loop, len(samples))
    if not bool(samples.isfinite().all()):
        raise ValueError("images must be finite, got NaN or Inf")
    made: Tensor = samples.to(loop.start.device, loop.start.dtype)
    return made


def _check_count(loop: Loop, count: int) -> None:
    if count != loop.layout.count:
        raise ValueError(
            f"this call makes {loop.layout.count} image{'s' * (loop.layout.count != 1)}, and {count} "
            f"{'was' if count == 1 else 'were'} given; pass one prompt for each"
        )


def _factors(made: Formed) -> tuple[list[float], float]:
    """Return what the states after each step, and the first one, are multiplied by to give the pipeline's samples."""
    if made.tables is None:
        return [1.0] * made.loop.length, 1.0
    assert made.tables.state_factors is not None
    assert isinstance(made.problem.chain, SamplerChain)
    denoiser = made.problem.chain.denoiser
    assert isinstance(denoiser, PipelineDenoiser)
    return made.tables.state_factors.tolist(), float(denoiser.factors[0])


def _in_samples(inversion: Inversion, last: list[float], first: float) -> Inversion:
    """Return an inversion in units of the pipeline's samples."""
    after = torch.tensor(last, dtype=torch.float64, device=inversion.states.device)
    before = torch.cat([after.new_tensor([first]), after[:-1]]).to(inversion.states)
    return replace(
        inversion,
        states=inversion.states * before.view(1, -1, *[1] * (inversion.states.ndim - 2)),
        reconstruction=inversion.reconstruction * last[-1],
        residuals=inversion.residuals * after.abs(),
        misfit=inversion.misfit * abs(last[-1]),
        round_trip=inversion.round_trip * abs(last[-1]),
        tolerance=inversion.tolerance * abs(last[-1]),
    )
