"""Images inverted through a pipeline: its own samples come back, foreign images say how far off they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from PIL import Image
from tiny_pipelines import arguments, pipeline
from torch import Tensor

from fixedpoint.chains import Identity, JointInversion, StepwiseInversion
from fixedpoint_diffusion import FashionMNISTPipeline, held_out_images, parallel

# diffusers' own, about its use of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 20
# One evaluation a step, for what does not depend on the method.
ROUGH = StepwiseInversion(preconditioner=Identity())


def rms(difference: Tensor) -> float:
    return float(difference.double().square().mean().sqrt())


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def invertible(name: str, **options: Any) -> Any:
    """A tiny pipeline with DDIM, or with the flow that it has."""
    pipe = pipeline(name, **options)
    if hasattr(pipe.scheduler, "alphas_cumprod"):
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def guided(name: str, scale: float, steps: int = STEPS) -> dict[str, Any]:
    call = {**arguments(name), "num_inference_steps": steps, "guidance_scale": scale}
    if name == "flux":  # its guidance_scale is an input of the network
        call |= {"true_cfg_scale": scale, "negative_prompt": ["blurred", "blurred"]}
    return call


@pytest.mark.parametrize(
    ("name", "scale", "steps"),
    [
        ("sd1", 1.0, STEPS),
        ("sd1", 7.5, STEPS),
        ("sdxl", 1.0, STEPS),
        pytest.param("sdxl", 7.5, 50, marks=pytest.mark.slow),
        ("sd3", 1.0, STEPS),
        ("sd3", 7.5, STEPS),
        ("flux", 1.0, STEPS),
        pytest.param("flux", 7.5, STEPS, marks=pytest.mark.slow),
    ],
)
def test_its_own_samples_come_back(name: str, scale: float, steps: int) -> None:
    """From their latents alone, by the pipeline's own call; the start is what it was, as far as it decides the end."""
    pipe, call = invertible(name), guided(name, scale, steps)
    starts: list[Tensor] = []

    def note(pipe: Any, number: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        starts.append(tensors["latents"])
        return tensors

    own = pipe(**call, generator=seeded(), callback_on_step_end=note).images
    inversion = parallel(pipe).invert(own, **call)
    assert inversion.succeeded.all(), inversion.message
    assert float(inversion.round_trip.max()) <= 1e-3
    assert inversion.latents.dtype == own.dtype
    assert inversion.latents.shape == own.shape
    again = pipe(**call, latents=inversion.latents).images
    assert rms(again - own) <= 1e-3
    torch.testing.assert_close(inversion.output.images, inversion.reconstruction)
    # The states that were found are the pipeline's own after each step.
    found = inversion.inversion.states[:, 1:]
    assert rms(found[:, -1] - starts[-2]) <= 1e-2 * rms(starts[-2])


def test_the_start_is_found() -> None:
    """Where the steps are well conditioned: those of the tiny network with random weights."""
    latents, name = torch.randn(2, 4, 8, 8, generator=seeded()), "sd3"
    for scale in (1.0, 7.5):
        pipe, call = invertible(name), guided(name, scale)
        own = pipe(**call, latents=latents).images
        inversion = parallel(pipe).invert(own, **call)
        assert rms(inversion.latents - latents) <= 5e-3


@pytest.mark.parametrize("scale", [1.0, *(pytest.param(scale, marks=pytest.mark.slow) for scale in (2.0, 3.0))])
def test_samples_of_a_trained_network_come_back(scale: float) -> None:
    """Its last steps nearly project, so that many starts lead to a sample; one of them is found."""
    pipe = FashionMNISTPipeline.bundled(DDIMScheduler, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": "bag", "num_inference_steps": STEPS, "guidance_scale": scale}
    own = pipe(**call, generator=seeded(), output_type="latent").images
    inversion = parallel(pipe).invert(own, **call, input_type="latent")
    assert inversion.succeeded.all(), inversion.message
    again = pipe(**call, latents=inversion.latents, output_type="latent").images
    assert rms(again - own) <= 1e-3


@pytest.mark.slow
def test_least_squares_come_nearer_to_a_sample_of_much_guidance() -> None:
    """Whether that is near enough, the status says."""
    pipe = FashionMNISTPipeline.bundled(DDIMScheduler, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": "trouser", "num_inference_steps": STEPS, "guidance_scale": 7.5}
    own = pipe(**call, generator=seeded(), output_type="latent").images
    left, found = (
        parallel(pipe).invert(
            own, **call, input_type="latent", method=JointInversion(clean_rounds=60, rescue=True, vectors=vectors)
        )
        for vectors in (0, 96)
    )
    assert float(left.round_trip) > 1e-3
    assert float(found.round_trip) < 0.8 * float(left.round_trip)
    again = pipe(**call, latents=found.latents, output_type="latent").images
    assert rms(again - own) == pytest.approx(float(found.round_trip), rel=0.05, abs=2e-5)
    assert found.succeeded.tolist() == [float(found.round_trip) <= 1e-3]


def test_an_image_is_edited_by_another_prompt() -> None:
    """Images that the model has not seen: their latents give them back, and with another prompt other clothes."""
    pipe = FashionMNISTPipeline.bundled(DDIMScheduler, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    sampler = parallel(pipe)
    images = (held_out_images()[0][:2] + 1) / 2
    call = {"num_inference_steps": STEPS, "output_type": "pt"}
    inversion = sampler.invert(images, ["T-shirt/top", "trouser"], **call)
    assert inversion.succeeded.all(), inversion.message
    assert rms(inversion.output.images - images) <= 1e-3
    same = sampler(["T-shirt/top", "trouser"], latents=inversion.latents, **call).images
    assert rms(same - images) <= 2e-3
    edited = sampler(["dress", "dress"], latents=inversion.latents, **call).images
    assert rms(edited - images) > 0.05


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux", "pixart"])
def test_an_image_is_encoded_as_the_pipeline_decodes(name: str) -> None:
    """Scale, shift, means and packing are undone: what was encoded decodes to what the autoencoder makes of it."""
    pipe = invertible(name)
    if name == "sdxl":
        pipe.vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.5, 1.0, 2.0, 0.7])
    call = {**guided(name, 1.0, 2), "output_type": "pt"}
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    inversion = parallel(pipe).invert(images, **call, method=ROUGH)
    with torch.no_grad():
        wanted = pipe.vae.decode(pipe.vae.encode(2 * images - 1).latent_dist.mode()).sample / 2 + 0.5
    sampler = parallel(pipe)
    problem = sampler.problem(**call)
    made = sampler._made(problem)
    states = inversion.target.unsqueeze(1).expand(-1, problem.length, *inversion.target.shape[1:])
    decoded = sampler._delivered(made, states)[0]
    torch.testing.assert_close(decoded, wanted.clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_a_foreign_image_says_so() -> None:
    """Noise is no sample of a trained model: the clean end leaves something over, and the status says it."""
    pipe = FashionMNISTPipeline.bundled(DDIMScheduler, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.rand(1, 1, 32, 32, generator=seeded())
    call = {"num_inference_steps": 5, "guidance_scale": 7.5, "output_type": "pt"}
    method = JointInversion(clean_rounds=60, rescue=True, vectors=12)
    inversion = parallel(pipe).invert(noise, "bag", **call, method=method)
    assert not inversion.succeeded.any()
    assert float(inversion.round_trip) > 1e-3
    assert "missed by rms" in inversion.sentences[0]
    assert inversion.message.startswith(f"1 of 1 rows {inversion.status[0].label}: ")


def test_known_noise_is_inverted() -> None:
    pipe = invertible("sd1")
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    call = guided("sd1", 1.0, 6)
    own = pipe(**call, generator=seeded()).images
    sampler = parallel(pipe)
    by_generator = sampler.invert(own, **call, generator=seeded())
    noise = by_generator.noise
    assert noise is not None
    rough = (
        sampler.invert(own, **call, method=ROUGH, **known) for known in ({"generator": seeded()}, {"noise": noise})
    )
    torch.testing.assert_close(*(each.latents for each in rough))
    again = sampler(**call, latents=by_generator.latents, noise=noise).images
    assert rms(again - own) <= max(2e-3, 3 * float(by_generator.round_trip.max()))


def test_clipping_is_refused_or_left_out() -> None:
    pipe = FashionMNISTPipeline.bundled(DDIMScheduler, clip_sample=True)
    pipe.set_progress_bar_config(disable=True)
    images = (held_out_images()[0][:1] + 1) / 2
    with pytest.raises(ValueError, match=r"clips the predicted image \(clip_sample=True\).*clipping='ignore'"):
        parallel(pipe).invert(images, 0, num_inference_steps=10)
    ignored = parallel(pipe).invert(images, 0, num_inference_steps=10, clipping="ignore", method=ROUGH)
    assert pipe.scheduler.config.clip_sample
    free = FashionMNISTPipeline.bundled(DDIMScheduler, clip_sample=False)
    free.set_progress_bar_config(disable=True)
    wanted = parallel(free).invert(images, 0, num_inference_steps=10, method=ROUGH)
    assert torch.equal(ignored.latents, wanted.latents)


@pytest.mark.parametrize(
    ("name", "scheduler", "sentence"),
    [
        ("sd1", PNDMScheduler, r"PNDMScheduler remembers .* pipe.scheduler = DDIMScheduler.from_config"),
        ("sd1", DPMSolverMultistepScheduler, "remembers more than its last sample, so an image has not one start"),
        ("sd1", EulerAncestralDiscreteScheduler, "adds noise at every step.*give noise= or a generator"),
        ("sd1", LCMScheduler, "replaces the noise of its input"),
        ("sd3", FlowMatchHeunDiscreteScheduler, r"FlowMatchEulerDiscreteScheduler.from_config"),
    ],
)
def test_schedulers_without_an_inverse_are_refused(name: str, scheduler: Any, sentence: str) -> None:
    pipe = pipeline(name)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    samples = torch.zeros(2, 4, 8, 8)
    options = {"generator": seeded()} if scheduler is LCMScheduler else {}
    with pytest.raises(ValueError, match=sentence):
        parallel(pipe).invert(samples, **guided(name, 1.0, 4), **options)


def test_what_a_pipeline_does_not_take_is_refused() -> None:
    sampler = parallel(invertible("sd1"))
    call = guided("sd1", 1.0, 4)
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    for wrong, sentence in (
        (images[:1], "this call makes 2 images, and 1 was given"),
        (torch.rand(2, 3, 32, 32), "images have 32 x 32 pixels, and this call makes 16 x 16; pass height=32 and width"),
        (images * 2 - 1, r"must have pixels in \[0, 1\], got -"),
        (images[:, :1], r"must have shape \(B, 3, H, W\)"),
        ((images * 255).byte(), "must be floating-point numbers"),
        ([Image.new("RGB", (16, 16)), Image.new("RGB", (8, 8))], "must be of one size, got 8 x 8, 16 x 16"),
        ([], "at least one image"),
        (torch.full((2, 4, 8, 8), torch.nan), "must be finite"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sampler.invert(wrong, **call)
    with pytest.raises(TypeError, match="must be PIL images, numpy arrays or tensors, got str"):
        sampler.invert("cat.png", **call)
    with pytest.raises(ValueError, match="invert finds the latents"):
        sampler.invert(images, **call, latents=torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match="clipping must be 'refuse' or 'ignore'"):
        sampler.invert(images, **call, clipping="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance must be positive"):
        sampler.invert(images, **call, tolerance=0.0)
    with pytest.raises(ValueError, match="input_type must be 'image' or 'latent'"):
        sampler.invert(images, **call, input_type="pil")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="method must be an Inverter"):
        sampler.invert(images, **call, method="joint")  # type: ignore[arg-type]
    for name in ("dit", "ddim", "img2img"):
        pipe = invertible(name)
        with pytest.raises(ValueError, match="takes no latents to begin with"):
            parallel(pipe).invert(torch.rand(2, 3, 16, 16), **arguments(name), num_inference_steps=4)


def test_images_of_any_kind_are_the_same() -> None:
    pipe = invertible("sd1")
    sampler, call = parallel(pipe), {**guided("sd1", 1.0, 2), "method": ROUGH}
    levels = torch.randint(0, 256, (2, 16, 16, 3), generator=seeded()).byte().numpy()
    pictures = [Image.fromarray(each) for each in levels]
    array = levels.astype(np.float32) / 255
    tensor = torch.from_numpy(array).movedim(-1, 1)
    wanted = sampler.invert(tensor, **call).target
    for images in (pictures, array, list(array), list(tensor)):
        torch.testing.assert_close(sampler.invert(images, **call).target, wanted)
    latents = sampler.invert(wanted, **call)  # of the shape of samples
    assert torch.equal(latents.target, wanted)


def test_euler_begins_at_its_own_scale() -> None:
    """The latents are unit noise, whatever the scheduler multiplies them by."""
    pipe = invertible("sd1")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    call = guided("sd1", 1.0)
    own = pipe(**call, generator=seeded()).images
    inversion = parallel(pipe).invert(own, **call)
    assert inversion.succeeded.all(), inversion.message
    assert 0.8 <= rms(inversion.latents) <= 1.2
    assert rms(pipe(**call, latents=inversion.latents).images - own) <= 2e-3


def test_float16() -> None:
    """States are found in float32; the latents are the pipeline's, in its dtype."""
    pipe = invertible("sd1", dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    call = {**guided("sd1", 1.0, 4), "output_type": "pt"}
    images = torch.rand(2, 3, 16, 16, generator=seeded())
    inversion = parallel(pipe).invert(images, **call, method=ROUGH)
    assert pipe.vae.dtype == torch.float16
    assert inversion.latents.dtype == torch.float16
    assert inversion.output.images.isfinite().all()


def test_a_method_of_ones_own() -> None:
    """One evaluation a step, as in other software, comes less near than the default."""
    pipe = FashionMNISTPipeline.bundled(DDIMScheduler, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    images, call = (held_out_images()[0][:1] + 1) / 2, {"prompt": 0, "num_inference_steps": STEPS}
    ours = parallel(pipe).invert(images, **call)
    theirs = parallel(pipe).invert(images, **call, method=ROUGH)
    assert float(theirs.round_trip) > 20 * float(ours.round_trip)
