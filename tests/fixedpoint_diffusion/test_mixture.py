"""The mixture's predictions are exact: against autograd of its log-density, and a closed-form trajectory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

import fixedpoint
from fixedpoint_diffusion import DDIMSchedule, GaussianMixture, ddim_problem, draw_noise
from fixedpoint_diffusion.models.choices import MixtureModel, ShapesModel
from fixedpoint_diffusion.samplers.noise import row_seeds


def log_density(x: torch.Tensor, signal: torch.Tensor, model: GaussianMixture) -> torch.Tensor:
    spread = signal * model.variances + 1 - signal
    components = torch.distributions.MultivariateNormal(
        signal.sqrt() * model.means.flatten(1),
        covariance_matrix=spread.view(-1, 1, 1) * torch.eye(x.shape[1], dtype=x.dtype),
    )
    mixture = torch.distributions.Categorical(model.weights)
    return torch.distributions.MixtureSameFamily(mixture, components).log_prob(x)


@given(seed=st.integers(0, 10**6), timestep=st.integers(0, 999))
def test_noise_is_the_score_of_the_density(seed: int, timestep: int) -> None:
    schedule = DDIMSchedule()
    model = MixtureModel(seed=seed, dimension=5).denoiser(schedule)
    assert isinstance(model, GaussianMixture)
    signal = schedule.alphas_cumprod[timestep]
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(log_density(x, signal, model).sum(), x)
    times, rows = torch.full((3,), timestep), torch.arange(3)
    noise = model.predict(x.detach(), times, rows)
    assert torch.allclose(noise, -(1 - signal).sqrt() * score, rtol=1e-8, atol=1e-8)


@given(seed=st.integers(0, 10**6), timestep=st.integers(0, 999))
def test_the_three_predictions_agree(seed: int, timestep: int) -> None:
    """``x = sqrt(ab) x0 + sqrt(1-ab) eps`` and ``v = sqrt(ab) eps - sqrt(1-ab) x0``."""
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    times, rows = torch.full((4,), timestep), torch.arange(4)
    predicted = {
        kind: MixtureModel(seed=seed).denoiser(DDIMSchedule(prediction_type=kind)).predict(x, times, rows)
        for kind in ("epsilon", "sample", "v_prediction")
    }
    signal = DDIMSchedule().alphas_cumprod[timestep]
    a, s = signal.sqrt(), (1 - signal).sqrt()
    assert torch.allclose(a * predicted["sample"] + s * predicted["epsilon"], x, rtol=1e-10, atol=1e-10)
    velocity = a * predicted["epsilon"] - s * predicted["sample"]
    assert torch.allclose(predicted["v_prediction"], velocity, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_a_single_gaussian_has_a_linear_chain(eta: float) -> None:
    """For one Gaussian every DDIM step is affine, with the slope of math done by hand."""
    schedule = DDIMSchedule(clip_sample=False)
    variance, mean = 0.3, torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    model = GaussianMixture(mean, torch.tensor([variance]), torch.ones(1), schedule)
    x_T, noise = draw_noise(row_seeds(0, 2), (3,), 25 if eta else 0, dtype=torch.float64)
    problem = ddim_problem(model, schedule, x_T, num_inference_steps=25, eta=eta, noise=noise)
    signal, later = schedule.signal(25)
    y = x_T - signal[0].sqrt() * mean
    for i, (ab, after) in enumerate(zip(signal, later, strict=True)):
        sigma = eta * ((1 - after) / (1 - ab) * (1 - ab / after)).sqrt()
        spread = ab * variance + 1 - ab
        direction = (1 - after - sigma**2).clamp(min=0).sqrt()
        slope = ((after * ab).sqrt() * variance + direction * (1 - ab).sqrt()) / spread
        y = slope * y + (sigma * noise[:, i] if noise is not None else 0.0)
    assert torch.allclose(fixedpoint.solve(problem, solver="anderson", rtol=1e-12).z[:, -1], y + mean, atol=1e-10)


def test_samples_lie_at_the_means() -> None:
    """A chain of many steps ends within a few standard deviations of one of the components."""
    schedule = DDIMSchedule(clip_sample=False)
    model = ShapesModel().denoiser(schedule)
    assert isinstance(model, GaussianMixture)
    x_T, _ = draw_noise(row_seeds(3, 12), ShapesModel().event_shape)
    samples = fixedpoint.solve(ddim_problem(model, schedule, x_T, num_inference_steps=100)).z[:, -1]
    distances = torch.cdist(samples.flatten(1).double(), model.means.flatten(1)) / 16
    assert (distances.amin(1) < 3 * 0.02**0.5).all()
    assert len(distances.argmin(1).unique()) >= 4  # the start decides which


def test_an_images_noise_does_not_depend_on_its_batch_mates() -> None:
    few, few_noise = draw_noise(row_seeds(7, 2), (3, 4), 5)
    many, many_noise = draw_noise(row_seeds(7, 9), (3, 4), 5)
    assert few_noise is not None
    assert many_noise is not None
    assert torch.equal(few, many[:2])
    assert torch.equal(few_noise, many_noise[:2])
    assert len({float(row.sum()) for row in many}) == 9
    assert not torch.equal(many, draw_noise(row_seeds(8, 9), (3, 4))[0])


def test_generators_in_place_of_seeds() -> None:
    by_seed, _ = draw_noise([11, 12], (3,))
    by_generator, _ = draw_noise([torch.Generator().manual_seed(11), torch.Generator().manual_seed(12)], (3,))
    assert torch.equal(by_seed, by_generator)


def test_timesteps_between_those_of_the_training() -> None:
    """The noise level is that at which diffusers' schedulers place such a timestep; whole ones are as they were."""
    schedule = DDIMSchedule(prediction_type="v_prediction")
    mixture = MixtureModel(dimension=3).denoiser(schedule)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    row = torch.zeros(4, dtype=torch.int64)
    whole = torch.tensor([0, 17, 500, 999])
    torch.testing.assert_close(mixture.predict(x, whole.double(), row), mixture.predict(x, whole, row))
    # A schedule with that level at a timestep of its own.
    euler = EulerDiscreteScheduler()
    ratios = ((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt()
    sigma = float((ratios[500] * ratios[501] ** 3) ** 0.25)
    between = float(euler._sigma_to_t(np.array(sigma), ratios.log().numpy()))
    assert between == pytest.approx(500.75, abs=1e-6)
    beta = 1 - 1 / (1 + sigma**2)
    there = DDIMSchedule(num_train_timesteps=1, trained_betas=(beta,), prediction_type="v_prediction")
    expected = MixtureModel(dimension=3).denoiser(there).predict(x, row, row)
    found = mixture.predict(x, torch.full((4,), between, dtype=torch.float64), row)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
