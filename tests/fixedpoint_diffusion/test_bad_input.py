"""Bad input of the diffusion plugin is a sentence, before any work is done."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

import fixedpoint
from fixedpoint_diffusion import DDIMChain, DDIMSchedule, GaussianMixture, as_denoiser, ddim_problem
from fixedpoint_diffusion.models.choices import MixtureModel
from fixedpoint_diffusion.task import Sampling

X = torch.zeros(2, 3)
PLAIN = DDIMSchedule(clip_sample=False)


def half(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return x / 2


def narrow(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return x[:, :1]


def paired(x: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
    return (x,)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: DDIMSchedule(beta_schedule="cosine"), "beta_schedule must be one of 'linear'"),
        (lambda: DDIMSchedule(num_train_timesteps=0), "num_train_timesteps must be at least 1, got 0"),
        (
            lambda: DDIMSchedule(trained_betas=(0.1, 0.2)),
            "trained_betas must hold num_train_timesteps = 1000 values, got 2",
        ),
        (lambda: DDIMSchedule().timesteps(1001), "from 1 to num_train_timesteps = 1000, got 1001"),
        (lambda: DDIMSchedule(steps_offset=5).timesteps(1000), "steps_offset = 5 leads to timestep 1004"),
        (lambda: DDIMSchedule.from_scheduler(DDPMScheduler()), "requires a diffusers DDIMScheduler, got DDPMScheduler"),
        (lambda: ddim_problem(half, DDPMScheduler(), X), "requires a diffusers DDIMScheduler, got DDPMScheduler"),
        (lambda: ddim_problem(half, PLAIN, X, eta=1.5), "eta must be from 0 to 1, got 1.5"),
        (lambda: ddim_problem(half, PLAIN, X, eta=0.5), "eta > 0 requires noise"),
        (lambda: ddim_problem(half, PLAIN, X, eta="0"), "eta must be from 0 to 1, got '0'"),
        (lambda: ddim_problem(half, PLAIN, X.numpy()), "x_T must be a tensor of shape .* got ndarray"),
        (lambda: ddim_problem(half, PLAIN, X, max_batch=0), "max_batch must be at least 1, got 0"),
        (lambda: ddim_problem(half, PLAIN, X, timesteps=()), r"a list of integers, .* got \[\]"),
        (lambda: ddim_problem(half, PLAIN, X, num_inference_steps=0), "num_inference_steps must be from 1"),
        (
            lambda: ddim_problem(half, PLAIN, X, num_inference_steps=4, eta=1.0, noise=torch.zeros(2, 3, 3)),
            r"noise must have shape \(B, 4, \*event\)",
        ),
        (
            lambda: ddim_problem(half, PLAIN, X, num_inference_steps=4, eta=1.0, noise=torch.zeros(1, 4, 3)),
            "to go with x_T",
        ),
        (
            lambda: DDIMChain(half, DDIMSchedule(rescale_betas_zero_snr=True, timestep_spacing="trailing"), 10),
            "cannot be stepped from a state without signal",
        ),
        (lambda: as_denoiser("unet"), "a denoiser must be a function"),
        (lambda: fixedpoint.solve(ddim_problem(narrow, PLAIN, X)), "the denoiser must return shape"),
        (
            lambda: fixedpoint.solve(ddim_problem(paired, PLAIN, X)),
            "a denoiser must return a tensor, got tuple",
        ),
        (lambda: MixtureModel(variance_low=0.5, variance_high=0.1), "variance_high must be at least variance_low"),
        (
            lambda: GaussianMixture(torch.zeros(2, 3), torch.tensor([1.0, -1.0]), torch.ones(2), PLAIN),
            "variances must be 2 positive numbers",
        ),
        (lambda: Sampling(batch=0), "batch must be at least 1, got 0"),
        (lambda: Sampling(dtype="bfloat16"), "dtype must be one of 'float32', 'float64', got 'bfloat16'"),
    ],
)
def test_bad_input_is_a_sentence(act: object, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        act()


def test_a_denoiser_that_raises_arrives_with_its_round() -> None:
    def failing(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory") as caught:
        fixedpoint.solve(ddim_problem(failing, PLAIN, X))
    assert any("round 1" in note for note in caught.value.__notes__)
