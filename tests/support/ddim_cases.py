"""DDIM chains drawn by hypothesis: any schedule, length and eta, for mixtures with exact scores and a fixed image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from fixedpoint.chains.problem import ChainProblem
from fixedpoint_diffusion import DDIMChain, DDIMSchedule, ddim_problem, draw_noise
from fixedpoint_diffusion.models.choices import MixtureModel
from fixedpoint_diffusion.samplers.noise import row_seeds

__all__ = ["Case", "cases", "fixed_image_chains", "with_fixed_image"]

ANY_BOOL = st.booleans()
ANY_ETA = st.floats(0.0, 1.0)
ANY_LENGTH = st.integers(1, 300) | st.sampled_from([1, 2, 50, 61, 300])  # 61 and 300 do not divide 1000


@dataclass(frozen=True)
class Case:
    """One chain: schedule, length, eta, batch size and mixture."""

    schedule: DDIMSchedule
    steps: int
    eta: float
    batch: int
    model: MixtureModel
    seed: int

    def problem(self) -> ChainProblem:
        x_T, noise = draw_noise(
            row_seeds(self.seed, self.batch),
            self.model.event_shape,
            self.steps if self.eta > 0 else 0,
            dtype=torch.float64,
        )
        return ddim_problem(
            self.model.denoiser(self.schedule),
            self.schedule,
            x_T,
            num_inference_steps=self.steps,
            eta=self.eta,
            noise=noise,
        )


@st.composite
def cases(
    draw: st.DrawFn,
    eta: st.SearchStrategy[float] = ANY_ETA,
    steps: st.SearchStrategy[int] = ANY_LENGTH,
    clip: st.SearchStrategy[bool] = ANY_BOOL,
) -> Case:
    prediction = draw(st.sampled_from(["epsilon", "sample", "v_prediction"]))
    schedule = DDIMSchedule(
        prediction_type=prediction,
        timestep_spacing=draw(st.sampled_from(["leading", "trailing", "linspace"])),
        beta_schedule=draw(st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"])),
        set_alpha_to_one=draw(st.booleans()),
        rescale_betas_zero_snr=prediction != "epsilon" and draw(st.booleans()),
        clip_sample=draw(clip),
    )
    model = MixtureModel(
        components=draw(st.integers(4, 8)),
        dimension=draw(st.integers(16, 24)),
        variance_low=0.02,
        variance_high=draw(st.floats(0.02, 0.1)),
        separation=draw(st.floats(4.0, 8.0)),
        seed=draw(st.integers(0, 10**6)),
    )
    return Case(
        schedule=schedule,
        steps=draw(steps),
        eta=draw(eta),
        batch=draw(st.integers(1, 7)),
        model=model,
        seed=draw(st.integers(0, 10**6)),
    )


def with_fixed_image(schedule: DDIMSchedule, length: int, eta: float, seed: int) -> tuple[DDIMChain, torch.Tensor]:
    """Return a chain whose model predicts the same clean image at every state, and its start."""
    image = torch.linspace(-0.9, 0.9, 5, dtype=torch.float64)
    table = schedule.alphas_cumprod

    def denoiser(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        a, s = table[timestep].sqrt().unsqueeze(1), (1 - table[timestep]).sqrt().unsqueeze(1)
        noise = (x - a * image) / s
        return {
            "epsilon": noise,
            "sample": image.expand_as(x),
            "v_prediction": a * noise - s * image,
        }[schedule.prediction_type]

    x_T, noise = draw_noise([seed, seed + 1], (5,), length, dtype=torch.float64)
    return DDIMChain(denoiser, schedule, length, eta=eta, noise=noise if eta > 0 else None), x_T


@st.composite
def fixed_image_chains(draw: st.DrawFn) -> tuple[DDIMChain, torch.Tensor]:
    prediction = draw(st.sampled_from(["epsilon", "sample", "v_prediction"]))
    schedule = DDIMSchedule(
        prediction_type=prediction,
        timestep_spacing=draw(st.sampled_from(["leading", "trailing", "linspace"])),
        set_alpha_to_one=draw(st.booleans()),
        rescale_betas_zero_snr=prediction != "epsilon" and draw(st.booleans()),
        clip_sample=draw(st.booleans()),
    )
    return with_fixed_image(
        schedule, draw(st.integers(1, 60)), draw(st.sampled_from([0.0, 0.3, 1.0])), draw(st.integers(0, 10**6))
    )
