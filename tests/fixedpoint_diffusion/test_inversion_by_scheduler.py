"""Inversion by the schedulers of diffusers: noise that leads back to its images, or a sentence before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMParallelScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

import fixedpoint
from fixedpoint_diffusion import Denoiser, draw_noise, invert, row_seeds, sampling_problem
from fixedpoint_diffusion.models.choices import MixtureModel
from fixedpoint_diffusion.schedules.schedulers import DDIMSchedule

# Some schedulers compute with numpy as it was.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

STEPS, ROWS = 20, 3
MIXTURE = MixtureModel().denoiser(DDIMSchedule())


def start(draws: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
    return draw_noise(row_seeds(0, ROWS), (16,), draws, dtype=torch.float64)


@pytest.mark.parametrize(
    ("made", "settings", "steps"),
    [
        (EulerDiscreteScheduler, {}, {"num_inference_steps": STEPS}),
        (EulerDiscreteScheduler, {"use_karras_sigmas": True}, {"num_inference_steps": STEPS}),
        (EulerDiscreteScheduler, {}, {"sigmas": [*torch.logspace(1.5, -1.5, STEPS).tolist(), 0.0]}),
        (DPMSolverMultistepScheduler, {"solver_order": 1}, {"timesteps": list(range(950, 0, -50))}),
        (DDIMParallelScheduler, {"clip_sample": True}, {"num_inference_steps": STEPS}),
    ],
)
def test_samples_lead_back_to_their_noise(made: Any, settings: dict[str, Any], steps: dict[str, Any]) -> None:
    """The latents are the unit noise that a sampling problem starts from, whatever the scheduler scales it by."""
    x, _ = start()
    scheduler = made(**settings)
    plain = made(**{**settings, "clip_sample": False}) if "clip_sample" in settings else scheduler
    images = fixedpoint.solve(sampling_problem(MIXTURE, plain, x, **steps), solver="serial").z[:, -1]
    inversion = invert(MIXTURE, scheduler, images, clipping="ignore", **steps)
    assert {status.label for status in inversion.status} == {"inverted"}
    assert float((inversion.latents - x).norm() / x.norm()) < 1e-3
    again = fixedpoint.solve(sampling_problem(MIXTURE, plain, inversion.latents, **steps), solver="serial").z[:, -1]
    torch.testing.assert_close(again, images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("made", [EulerAncestralDiscreteScheduler, lambda: DDPMScheduler(clip_sample=False)])
def test_a_stochastic_sampler_leads_back_with_its_noise(made: Any) -> None:
    draws = STEPS if made is EulerAncestralDiscreteScheduler else STEPS - 1
    x, noise = start(draws)
    problem = sampling_problem(MIXTURE, made(), x, num_inference_steps=STEPS, noise=noise)
    images = fixedpoint.solve(problem, solver="serial").z[:, -1]
    inversion = invert(MIXTURE, made(), images, num_inference_steps=STEPS, noise=noise)
    assert {status.label for status in inversion.status} == {"inverted"}


class Untouched(Denoiser):
    """Fails where it is evaluated."""

    def predict(self, x: torch.Tensor, timestep: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        pytest.fail("evaluated")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        *(
            (made, f"{made.__name__} makes its steps of several evaluations, so that an image alone does not lead back")
            for made in (
                *(DPMSolverMultistepScheduler, UniPCMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler),
                DEISMultistepScheduler,
            )
        ),
        (LCMScheduler, "LCMScheduler replaces the noise of its input at every step"),
        (
            EulerAncestralDiscreteScheduler,
            "EulerAncestralDiscreteScheduler as it is set adds noise at every step; give",
        ),
        (DDPMScheduler, "scheduler cannot be used: |adds noise|requires noise"),
    ],
)
def test_what_has_no_inverse_is_refused_before_any_work(made: Any, sentence: str) -> None:
    x, _ = start()
    with pytest.raises(ValueError, match=sentence):
        invert(Untouched(), made(), x, num_inference_steps=STEPS)


def test_eta_makes_a_sampler_stochastic() -> None:
    x, _ = start()
    with pytest.raises(ValueError, match="TCDScheduler as it is set adds noise at every step; give this noise"):
        invert(Untouched(), TCDScheduler(), x, num_inference_steps=STEPS, eta=0.3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"eta": 0.5}, "eta must be 0: the steps of PNDMScheduler take no eta"),
        ({"timesteps": [9, 1]}, "timesteps must be null: PNDMScheduler takes no timesteps"),
        ({"clipping": "maybe"}, "clipping must be 'refuse' or 'ignore'"),
    ],
)
def test_arguments_that_the_scheduler_has_not(arguments: dict[str, Any], sentence: str) -> None:
    x, _ = start()
    with pytest.raises(ValueError, match=sentence):
        invert(Untouched(), PNDMScheduler(), x, **arguments)
