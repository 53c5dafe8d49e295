"""Schedulers of diffusers for tests: names, settings, numbers of steps, and a network to run them with."""

from __future__ import annotations

import inspect
import math
from typing import Any

import diffusers
import torch
from hypothesis import strategies as st

__all__ = [
    "EVERY",
    "HISTORY",
    "KINDS",
    "NOISE_LEVELS",
    "PREDICTIONS",
    "arguments_of_steps",
    "difference",
    "images",
    "made",
    "network",
]

EVERY = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
# Arguments without a default; what requires a library that is not installed is not here.
REQUIRED = {
    "AmusedScheduler": {"mask_token_id": 0},
    "VQDiffusionScheduler": {"num_vec_classes": 4},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
}
# The history of each scheduler as it is made without arguments, in pairs; None: more than 4.
HISTORY = {
    "CMStochasticIterativeScheduler": 1,
    "CogVideoXDDIMScheduler": 1,
    "DDIMInverseScheduler": 1,
    "DDIMParallelScheduler": 1,
    "DDIMScheduler": 1,
    "DDPMParallelScheduler": 1,
    "DDPMScheduler": 1,
    "DEISMultistepScheduler": 2,
    "DPMSolverMultistepInverseScheduler": 2,
    "DPMSolverMultistepScheduler": 2,
    "DPMSolverSinglestepScheduler": 2,
    "EDMDPMSolverMultistepScheduler": 2,
    "EDMEulerScheduler": 1,
    "EulerAncestralDiscreteScheduler": 1,
    "EulerDiscreteScheduler": 1,
    "FlowMapEulerDiscreteScheduler": 1,
    "FlowMatchEulerDiscreteScheduler": 1,
    "FlowMatchHeunDiscreteScheduler": 2,
    "FlowMatchLCMScheduler": 1,
    "HeunDiscreteScheduler": 2,
    "IPNDMScheduler": 4,
    "KDPM2AncestralDiscreteScheduler": 2,
    "KDPM2DiscreteScheduler": 2,
    "LCMScheduler": 1,
    "LMSDiscreteScheduler": 4,
    "LTXEulerAncestralRFScheduler": 1,
    "MiniMaxH3Scheduler": 1,
    "PNDMScheduler": None,
    "SASolverScheduler": 3,
    "TCDScheduler": 1,
    "UniPCMultistepScheduler": 3,
}
NOISE_LEVELS = [*({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def made(name: str, **options: Any) -> Any:
    """The scheduler without what changes the clean image."""
    taken = inspect.signature(getattr(diffusers, name).__init__).parameters
    plain = {each: False for each in ("clip_sample", "clip_denoised", "thresholding") if each in taken}
    return getattr(diffusers, name)(**{**plain, **REQUIRED.get(name, {}), **options})


def network(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    phase = math.sin(3 * float(t) / 1000)
    return 0.9 * torch.tanh(0.8 * u + 0.4 * u.roll(1, dims=-1) + phase)


def images(draws: int, seed: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randn(
        rows, 1 + draws, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 17)
    )
    return drawn[:, 0], drawn[:, 1:]


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest of any input, relative to its size."""
    size = expected.flatten(2).abs().amax(2)
    return float(((found - expected).flatten(2).abs().amax(2) / size).max())


def options(name: str, **choices: list[Any]) -> Any:
    """A strategy of schedulers: ``(name, options)``."""
    return st.fixed_dictionaries({key: st.sampled_from(values) for key, values in choices.items()}).map(
        lambda drawn: (name, {**drawn.pop("levels", {}), **drawn})
    )


KINDS = {
    "ddim": options(
        "DDIMScheduler",
        prediction_type=PREDICTIONS,
        set_alpha_to_one=[True, False],
        timestep_spacing=["leading", "trailing", "linspace"],
    ),
    "ddpm": options(
        "DDPMScheduler", prediction_type=PREDICTIONS, variance_type=["fixed_small", "fixed_small_log", "fixed_large"]
    ),
    "pndm": options(
        "PNDMScheduler",
        prediction_type=PREDICTIONS[:2],
        skip_prk_steps=[True, False],
        timestep_spacing=["leading", "trailing"],
    ),
    "deis": options("DEISMultistepScheduler", prediction_type=PREDICTIONS, solver_order=[1, 2, 3]),
    "sigmas": st.one_of(
        options("EulerDiscreteScheduler", prediction_type=PREDICTIONS, levels=NOISE_LEVELS),
        options(
            "EulerDiscreteScheduler",
            timestep_type=["continuous"],
            prediction_type=["v_prediction"],
            levels=NOISE_LEVELS,
        ),
        options("HeunDiscreteScheduler", prediction_type=PREDICTIONS, levels=NOISE_LEVELS),
        options("EulerAncestralDiscreteScheduler", prediction_type=PREDICTIONS[:2]),
        options("LMSDiscreteScheduler", prediction_type=PREDICTIONS[:2], levels=NOISE_LEVELS),
        options("EDMEulerScheduler", prediction_type=PREDICTIONS[:2], sigma_schedule=["karras", "exponential"]),
    ),
    "kdpm2": st.one_of(
        options("KDPM2DiscreteScheduler", prediction_type=PREDICTIONS[:2], levels=NOISE_LEVELS),
        options("KDPM2AncestralDiscreteScheduler", prediction_type=PREDICTIONS[:2], levels=NOISE_LEVELS),
    ),
    "multistep": options(
        "DPMSolverMultistepScheduler",
        algorithm_type=["dpmsolver++", "sde-dpmsolver++"],
        prediction_type=PREDICTIONS,
        solver_order=[1, 2, 3],
        solver_type=["midpoint", "heun"],
        lower_order_final=[True, False],
        euler_at_final=[True, False],
        final_sigmas_type=["zero", "sigma_min"],
        levels=NOISE_LEVELS,
    ),
    "multistep in noise": options(
        "DPMSolverMultistepScheduler",
        algorithm_type=["dpmsolver", "sde-dpmsolver"],
        prediction_type=PREDICTIONS,
        solver_order=[1, 2],
        solver_type=["midpoint", "heun"],
        final_sigmas_type=["sigma_min"],
        levels=NOISE_LEVELS,
    ),
    "singlestep": options(
        "DPMSolverSinglestepScheduler",
        algorithm_type=["dpmsolver++", "sde-dpmsolver++", "dpmsolver"],
        prediction_type=PREDICTIONS,
        solver_order=[1, 2, 3],
        solver_type=["midpoint", "heun"],
        lower_order_final=[True],
        final_sigmas_type=["sigma_min"],
        levels=NOISE_LEVELS,
    ),
    "unipc": options(
        "UniPCMultistepScheduler",
        prediction_type=PREDICTIONS,
        solver_order=[1, 2, 3],
        solver_type=["bh1", "bh2"],
        predict_x0=[True, False],
        lower_order_final=[True, False],
        final_sigmas_type=["zero", "sigma_min"],
        levels=NOISE_LEVELS,
    ),
    "flow": st.one_of(
        options("FlowMatchEulerDiscreteScheduler", shift=[1.0, 3.0], stochastic_sampling=[True, False]),
        options("FlowMatchEulerDiscreteScheduler", shift=[3.0], levels=NOISE_LEVELS),
        options("FlowMatchHeunDiscreteScheduler", shift=[1.0, 3.0]),
        options(
            "DPMSolverMultistepScheduler", use_flow_sigmas=[True], prediction_type=["flow_prediction"], flow_shift=[3.0]
        ),
        options("UniPCMultistepScheduler", use_flow_sigmas=[True], prediction_type=["flow_prediction"]),
    ),
    "others": st.one_of(
        options("EDMDPMSolverMultistepScheduler", solver_order=[1, 2, 3], prediction_type=PREDICTIONS[:2]),
        options("IPNDMScheduler"),
        options("SASolverScheduler", predictor_order=[1, 2, 3], corrector_order=[1, 2], prediction_type=PREDICTIONS),
        options("DDIMInverseScheduler", prediction_type=PREDICTIONS),
        options("DPMSolverMultistepInverseScheduler", solver_order=[1, 2, 3]),
    ),
}


@st.composite
def arguments_of_steps(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Further arguments of every step, for the schedulers that have some."""
    if name == "DDIMScheduler":
        return {"eta": draw(st.sampled_from([0.0, 0.5, 1.0]))}
    if name in ("EulerDiscreteScheduler", "EDMEulerScheduler"):
        return {"s_churn": draw(st.sampled_from([0.0, 5.0])), "s_noise": 1.003}
    return {}
