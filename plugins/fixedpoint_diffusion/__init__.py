"""Diffusion chains as joint fixed points: schedules, the DDIM chain, models with known scores, and the sampling task.

``ddim_problem`` makes the problem that ``fixedpoint.solve`` solves; ``solution.z[:, -1]`` are the samples.
"""

from fixedpoint_diffusion.ddim import DDIMChain, ddim_problem
from fixedpoint_diffusion.denoiser import Denoiser, as_denoiser
from fixedpoint_diffusion.mixture import GaussianMixture
from fixedpoint_diffusion.noise import draw_noise
from fixedpoint_diffusion.schedule import DDIMSchedule

__all__ = ["DDIMChain", "DDIMSchedule", "Denoiser", "GaussianMixture", "as_denoiser", "ddim_problem", "draw_noise"]
