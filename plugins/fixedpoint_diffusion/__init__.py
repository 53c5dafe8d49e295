"""Diffusion chains as joint fixed points: schedules, the DDIM chain, your network or a known score, the sampling task.

``ddim_problem`` makes the problem that ``fixedpoint.solve`` solves; ``solution.z[:, -1]`` are the samples. ``invert``
finds the noise of images. Nothing heavy is imported until it is used, so that listing plugins stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fixedpoint_diffusion.convert import as_denoiser as as_denoiser
    from fixedpoint_diffusion.ddim import DDIMChain as DDIMChain
    from fixedpoint_diffusion.denoiser import Denoiser as Denoiser
    from fixedpoint_diffusion.inversion import invert as invert
    from fixedpoint_diffusion.mixture import GaussianMixture as GaussianMixture
    from fixedpoint_diffusion.network import NetworkDenoiser as NetworkDenoiser
    from fixedpoint_diffusion.noise import draw_noise as draw_noise
    from fixedpoint_diffusion.noise import row_seeds as row_seeds
    from fixedpoint_diffusion.problem import ddim_problem as ddim_problem
    from fixedpoint_diffusion.schedulers import DDIMSchedule as DDIMSchedule
    from fixedpoint_diffusion.timesteps import quadratic_timesteps as quadratic_timesteps

_EXPORTS = {
    "DDIMChain": "fixedpoint_diffusion.ddim",
    "DDIMSchedule": "fixedpoint_diffusion.schedulers",
    "Denoiser": "fixedpoint_diffusion.denoiser",
    "GaussianMixture": "fixedpoint_diffusion.mixture",
    "NetworkDenoiser": "fixedpoint_diffusion.network",
    "as_denoiser": "fixedpoint_diffusion.convert",
    "ddim_problem": "fixedpoint_diffusion.problem",
    "draw_noise": "fixedpoint_diffusion.noise",
    "invert": "fixedpoint_diffusion.inversion",
    "quadratic_timesteps": "fixedpoint_diffusion.timesteps",
    "row_seeds": "fixedpoint_diffusion.noise",
}

__all__ = [
    "DDIMChain",
    "DDIMSchedule",
    "Denoiser",
    "GaussianMixture",
    "NetworkDenoiser",
    "as_denoiser",
    "ddim_problem",
    "draw_noise",
    "invert",
    "quadratic_timesteps",
    "row_seeds",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fixedpoint_diffusion' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
