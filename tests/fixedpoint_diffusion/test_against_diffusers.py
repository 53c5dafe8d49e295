"""Our sequential chain equals a loop over ``diffusers.DDIMScheduler.step``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel

import fixedpoint
from fixedpoint_diffusion import DDIMChain, DDIMSchedule, ddim_problem, draw_noise
from fixedpoint_diffusion.samplers.noise import row_seeds

SHAPE = (2, 6, 6)


def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A smooth stand-in for a trained model: bounded, mixes pixels, depends on time."""
    phase = (timestep.to(x) / 1000 * math.pi).view(-1, 1, 1, 1)
    return torch.tanh(0.8 * x + 0.4 * x.roll(1, dims=-1) - 0.3 * x.roll(2, dims=-2) + torch.sin(phase)) * 0.9


def looped(
    scheduler: DDIMScheduler, steps: int, x: torch.Tensor, eta: float, noise: torch.Tensor | None
) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    timesteps = [t for t in scheduler.timesteps if t >= 0]
    for i, t in enumerate(timesteps):
        prediction = network(x, t.expand(len(x)))
        step_noise = noise[:, i] if noise is not None else None
        x = scheduler.step(prediction, int(t), x, eta=eta, variance_noise=step_noise).prev_sample
    return x


def compare(scheduler: DDIMScheduler, steps: int, eta: float = 0.0, seed: int = 0) -> float:
    """Largest relative difference of a sample, float32."""
    x_T, noise = draw_noise(row_seeds(seed, 3), SHAPE, steps if eta > 0 else 0)
    problem = ddim_problem(network, scheduler, x_T, num_inference_steps=steps, eta=eta, noise=noise)
    ours = fixedpoint.solve(problem, solver="serial").z[:, -1]
    theirs = looped(scheduler, steps, x_T, eta, noise)
    difference = (ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)
    return float(difference.amax())


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 61, 300])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("to_one", [True, False])
def test_every_spacing_and_ending(steps: int, spacing: str, to_one: bool) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing, set_alpha_to_one=to_one, clip_sample=False)
    assert compare(scheduler, steps) < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("to_one", [True, False])
def test_every_prediction_type(prediction: str, clip: bool, eta: float, to_one: bool) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=clip, set_alpha_to_one=to_one)
    assert compare(scheduler, 40, eta) < 1e-5


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("clip", [True, False])
def test_zero_terminal_snr_with_v_prediction(schedule: str, spacing: str, clip: bool) -> None:
    scheduler = DDIMScheduler(
        beta_schedule=schedule,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing=spacing,
        clip_sample=clip,
    )
    assert scheduler.alphas_cumprod[-1] == 0
    assert compare(scheduler, 30) < 1e-5


def test_stable_diffusions_configuration() -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    assert compare(scheduler, 50) < 1e-5


def test_dynamic_thresholding() -> None:
    scheduler = DDIMScheduler(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.9)
    assert compare(scheduler, 20) < 1e-5


def test_eps_derived_anew_from_the_clipped_image() -> None:
    scheduler = DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(20)
    x_T, _ = draw_noise(row_seeds(1, 2), SHAPE)
    chain = DDIMChain(network, DDIMSchedule.from_scheduler(scheduler), 20, use_clipped_model_output=True)
    ours = fixedpoint.solve(fixedpoint.ChainProblem(chain, x_T), solver="serial").z[:, -1]
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(2)), int(t), x, use_clipped_model_output=True).prev_sample
    assert torch.allclose(ours, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"rescale_betas_zero_snr": True},
        {"num_train_timesteps": 7, "trained_betas": [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4]},
    ],
)
def test_tables_are_the_schedulers_own_bit_for_bit(options: dict[str, object]) -> None:
    scheduler = DDIMScheduler(**options)
    schedule = DDIMSchedule.from_scheduler(scheduler)
    assert torch.equal(schedule.alphas_cumprod, scheduler.alphas_cumprod.double())
    assert schedule == DDIMSchedule(**{**options, "trained_betas": options.get("trained_betas")})


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_of_every_length(spacing: str) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    schedule = DDIMSchedule.from_scheduler(scheduler)
    for steps in range(1, 1001):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.numpy()
        # Rounding lets the trailing spacing of diffusers run one step below zero for some lengths.
        assert np.array_equal(schedule.timesteps(steps), theirs[theirs >= 0])
        assert len(schedule.timesteps(steps)) == steps


def test_the_joint_solve_equals_the_loop() -> None:
    """All the way: the batched joint fixed point against somebody else's sequential sampler."""
    scheduler = DDIMScheduler(clip_sample=True)
    x_T, noise = draw_noise(row_seeds(5, 4), SHAPE, 50)
    problem = ddim_problem(network, scheduler, x_T, num_inference_steps=50, eta=0.7, noise=noise)
    solution = fixedpoint.solve(problem, solver="anderson", rtol=1e-6)
    theirs = looped(scheduler, 50, x_T, 0.7, noise)
    assert solution.converged.all()
    assert torch.allclose(solution.z[:, -1], theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_diffusers_model_and_scheduler_as_they_are(eta: float, prediction: str) -> None:
    """The user's own U-Net, with random weights, in ten lines: joint, serial and looped agree."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    scheduler = DDIMScheduler(prediction_type=prediction)
    x_T, noise = draw_noise(row_seeds(2, 3), (1, 8, 8), 20 if eta else 0)

    problem = ddim_problem(
        unet,
        scheduler,
        x_T,
        num_inference_steps=20,
        eta=eta,
        noise=noise,
        max_batch=16,
    )
    joint = fixedpoint.solve(problem, solver="anderson", rtol=1e-5)
    serial = fixedpoint.solve(problem, solver="serial")

    scheduler.set_timesteps(20)
    x = x_T
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            step_noise = noise[:, i] if noise is not None else None
            x = scheduler.step(unet(x, t).sample, int(t), x, eta=eta, variance_noise=step_noise).prev_sample
    assert joint.converged.all()
    assert joint.counts.rounds <= 20
    # A random network amplifies rounding: the first step divides float32 noise by sqrt(ab) = 0.006.
    assert torch.allclose(serial.z[:, -1], x, rtol=1e-3, atol=1e-3)
    assert torch.allclose(joint.z[:, -1], x, rtol=2e-3, atol=2e-3)
