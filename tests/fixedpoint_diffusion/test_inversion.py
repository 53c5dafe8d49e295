"""Images inverted by the entry for people: the bundled model, guidance, noise, clipping, and images in between."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import fixedpoint as fp
from fixedpoint_diffusion import DDIMSchedule, ddim_problem, draw_noise
from fixedpoint_diffusion.fashion_mnist.images import held_out_images
from fixedpoint_diffusion.inversion.invert import Inversion, JointInversion, StepwiseInversion, invert, slerp
from fixedpoint_diffusion.models.choices import FashionMNISTModel, MixtureModel


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rms(difference: Tensor) -> Tensor:
    return difference.flatten(1).double().square().mean(dim=1).sqrt()


def inverted(model: FashionMNISTModel, count: int, steps: int, method: object = None) -> tuple[Inversion, Tensor]:
    """Some test images, and what the serial chain makes of their latents."""
    images, _ = held_out_images()
    schedule = model.own_schedule
    assert schedule is not None
    denoiser = model.denoiser(schedule, count)
    found = invert(denoiser, schedule, images[:count], num_inference_steps=steps, method=method)  # type: ignore[arg-type]
    problem = ddim_problem(denoiser, schedule, found.latents, num_inference_steps=steps)
    return found, rms(fp.solve(problem, solver="serial").z[:, -1] - images[:count])


def test_real_images_come_back() -> None:
    """They need not be such as the model can make; the answer says how near it comes, and step by step does worse."""
    found, off = inverted(FashionMNISTModel(), 2, 20)
    assert found.succeeded.all()
    assert float(off.max()) <= 1e-3
    torch.testing.assert_close(found.round_trip, off, rtol=0.2, atol=2e-5)
    assert set(found.stages) == {"clean end", "joint", "round trip"}
    assert found.rounds <= 80
    naive, missed = inverted(FashionMNISTModel(), 2, 20, StepwiseInversion())
    assert not naive.succeeded.any()
    assert float(missed.min()) > 20 * float(off.max())


def test_guidance_comes_back_or_is_said_not_to() -> None:
    found, off = inverted(FashionMNISTModel(guidance_scale=2.0), 1, 20)
    assert found.succeeded.tolist() == (off <= 2e-3).tolist()
    short, off = inverted(FashionMNISTModel(guidance_scale=8.0), 1, 20, JointInversion(max_rounds=5))
    assert not short.succeeded.any()
    assert float(off.min()) > 2e-3


def test_noise_that_is_known_comes_back() -> None:
    schedule = DDIMSchedule(clip_sample=False)
    model = MixtureModel(dimension=12).denoiser(schedule)
    x_T, noise = draw_noise(range(3), (12,), 20, dtype=torch.float64)
    problem = ddim_problem(model, schedule, x_T, num_inference_steps=20, eta=0.3, noise=noise)
    images = fp.solve(problem, solver="serial").z[:, -1]
    method = JointInversion(rtol=1e-12, clean_rounds=200, max_rounds=200)
    found = invert(model, schedule, images, num_inference_steps=20, eta=0.3, noise=noise, method=method)
    assert float(rms(found.latents - x_T).max()) <= 1e-8
    other = invert(model, schedule, images, num_inference_steps=20, method=method)
    assert float(rms(other.latents - x_T).min()) > 0.01


def test_clipping_is_refused_or_left_out() -> None:
    schedule = DDIMSchedule()
    model = MixtureModel(dimension=12).denoiser(schedule)
    images = draw(1, 2, 12)
    with pytest.raises(ValueError, match=r"clip_sample is not invertible.*clipping='ignore'"):
        invert(model, schedule, images, num_inference_steps=10)
    with pytest.raises(ValueError, match="dynamic thresholding is not invertible"):
        invert(model, DDIMSchedule(thresholding=True), images, num_inference_steps=10)
    with pytest.raises(ValueError, match="clipping must be 'refuse' or 'ignore', got 'no'"):
        invert(model, schedule, images, clipping="no")  # type: ignore[arg-type]
    free = replace(schedule, clip_sample=False)
    one = invert(model, schedule, images, num_inference_steps=10, clipping="ignore")
    other = invert(model, free, images, num_inference_steps=10)
    assert torch.equal(one.latents, other.latents)


def test_a_scheduler_of_diffusers_is_taken() -> None:
    from diffusers import DDIMScheduler

    schedule = DDIMSchedule(clip_sample=False)
    model = MixtureModel(dimension=12).denoiser(schedule)
    images = draw(2, 2, 12)
    one = invert(model, DDIMScheduler(clip_sample=False), images, num_inference_steps=10)
    assert torch.equal(one.latents, invert(model, schedule, images, num_inference_steps=10).latents)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_between_two_latents(share: float) -> None:
    """On the unit circle: the point at that share of the angle; of one and the same: itself."""
    angles = torch.tensor([[0.2, 1.5], [-0.4, 2.0]], dtype=torch.float64)
    first, second = (torch.stack([angle.cos(), angle.sin()], dim=1) for angle in angles.T)
    between = angles[:, 0] + share * (angles[:, 1] - angles[:, 0])
    wanted = torch.stack([between.cos(), between.sin()], dim=1)
    torch.testing.assert_close(slerp(first, second, share), wanted)
    torch.testing.assert_close(slerp(first, first, share), first)
    assert slerp(first.float(), second.float(), share).dtype == torch.float32
    with pytest.raises(ValueError, match=r"second must have shape \(2, 2\)"):
        slerp(first, second[:1], share)
