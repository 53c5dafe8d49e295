"""The bundled model: what diffusers makes of it, joint equals serial, and the classifier that judges it."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

import fixedpoint
from fixedpoint.chains.problem import ChainProblem
from fixedpoint_diffusion.fashion_mnist import CLASSES, DENOISER
from fixedpoint_diffusion.fashion_mnist.classifier import Gaussian, frechet_distance, load_classifier, reference
from fixedpoint_diffusion.fashion_mnist.images import held_out_images
from fixedpoint_diffusion.models.choices import FashionMNISTModel
from fixedpoint_diffusion.task import Sampling

JOINT = {
    "picard": fixedpoint.ChainSolver(),
    "anderson": fixedpoint.ChainSolver(accelerator=fixedpoint.Anderson(memory=2)),
    "broyden": fixedpoint.ChainSolver(accelerator=fixedpoint.Broyden(memory=10)),
}


def chain(steps: int, eta: float = 0.0, batch: int = 2, **options: object) -> ChainProblem:
    task = Sampling(model=FashionMNISTModel(**options), num_inference_steps=steps, eta=eta, batch=batch)
    problem = task.problem(0)
    assert isinstance(problem, ChainProblem)
    return problem


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest relative difference of the samples of any row."""
    difference = (one[:, -1] - other[:, -1]).flatten(1).double().norm(dim=1)
    return float((difference / other[:, -1].flatten(1).double().norm(dim=1)).amax())


@pytest.mark.parametrize("solver", JOINT)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("steps", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_joint_equals_serial_and_alone_equals_in_a_batch(steps: int, eta: float, solver: str) -> None:
    problem = chain(steps, eta)
    serial = fixedpoint.solve(problem, solver="serial")
    solution = fixedpoint.solve(problem, solver=JOINT[solver], rtol=1e-4)
    assert solution.converged.all()
    assert solution.counts.rounds <= steps
    assert relative(solution.z, serial.z) <= 1e-3
    alone = fixedpoint.solve(problem.take(torch.tensor([1])), solver=JOINT[solver], rtol=1e-4)
    assert relative(alone.z, solution.z[1:]) <= 1e-5


def test_the_serial_chain_is_that_of_diffusers() -> None:
    """Model and scheduler loaded by diffusers alone, stepped by its own loop."""
    model = DiTTransformer2DModel.from_pretrained(DENOISER, low_cpu_mem_usage=False).eval()
    scheduler = DDIMScheduler.from_pretrained(DENOISER)
    scheduler.set_timesteps(10)
    problem = chain(10, batch=10)
    x, labels = problem.x0, torch.arange(10)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.expand(10), class_labels=labels).sample, t, x).prev_sample
    serial = fixedpoint.solve(problem, solver="serial")
    assert relative(serial.z, x.unsqueeze(1)) <= 1e-5


def test_guidance_changes_the_samples_and_joint_still_equals_serial() -> None:
    plain, guided = (chain(10, batch=2, classes=(5, 8), guidance_scale=scale) for scale in (1.0, 3.0))
    serial = fixedpoint.solve(guided, solver="serial")
    assert relative(fixedpoint.solve(plain, solver="serial").z, serial.z) > 0.05
    assert relative(fixedpoint.solve(guided, rtol=1e-4).z, serial.z) <= 1e-3


def test_a_bfloat16_network_with_float32_states() -> None:
    problem = chain(10, dtype="bfloat16")
    solution = fixedpoint.solve(problem, rtol=1e-2)
    assert solution.z.dtype == torch.float32
    assert solution.converged.all()
    exact = fixedpoint.solve(chain(10), solver="serial")
    # bfloat16 keeps eight bits: the two networks differ by more than the solve does.
    assert relative(solution.z, exact.z) <= 0.1


def test_the_card_says_what_the_files_say() -> None:
    card = (DENOISER / "README.md").read_text()
    recipe = json.loads((DENOISER / "training.json").read_text())
    for key in ("epochs", "batch", "learning_rate", "ema", "seed"):
        assert f"{recipe[key]:g}" in card
    assert (DENOISER / "diffusion_pytorch_model.safetensors").stat().st_size < 12 * 2**20


def test_held_out_images() -> None:
    images, labels = held_out_images()
    assert images.shape == (1000, 1, 32, 32)
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    assert labels.tolist() == list(range(10)) * 100
    assert (images[:, :, :2] == -1).all()
    assert (images[..., -2:] == -1).all()


def test_the_classifier_knows_the_held_out_images() -> None:
    images, labels = held_out_images()
    features, found = load_classifier().judge(images)
    assert float((found == labels).double().mean()) >= 0.9
    own = frechet_distance(Gaussian.of(features), reference())
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    far = frechet_distance(Gaussian.of(load_classifier().judge(noise)[0]), reference())
    assert own < 0.05 * far


def test_samples_are_of_the_class_that_was_asked_for() -> None:
    samples = fixedpoint.solve(chain(25, batch=40), solver="serial").z[:, -1]
    found = load_classifier().judge(samples)[1]
    assert float((found == torch.arange(40) % len(CLASSES)).double().mean()) >= 0.8


@settings(max_examples=25)
@given(size=st.integers(1, 12), count=st.integers(2, 40), seed=st.integers(0, 10**6))
def test_frechet_distance_equals_its_formula(size: int, count: int, seed: int) -> None:
    """Against SciPy's matrix square root; singular covariances (fewer samples than features) among them."""
    generator = torch.Generator().manual_seed(seed)
    one, two = (
        Gaussian.of(torch.randn(count, size, generator=generator, dtype=torch.float64) * scale + shift)
        for scale, shift in ((1.0, 0.0), (2.0, 0.5))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a singular matrix, and SciPy's deprecations
        root = np.real(sqrtm((one.covariance @ two.covariance).numpy()))
    apart = float((one.mean - two.mean).square().sum())
    expected = apart + float(one.covariance.trace() + two.covariance.trace()) - 2 * np.trace(root)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-6)


def test_a_covariance_wants_two_samples() -> None:
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        Gaussian.of(torch.zeros(1, 3))
