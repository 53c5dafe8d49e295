"""The denoising loop of Stable Diffusion 3, solved as one joint fixed point."""

from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3DenoiseStep

from fixedpoint_diffusion.modular import JointDenoise


class StableDiffusion3JointDenoise(JointDenoise):
    def __init__(self, rtol=1e-3, solver="auto", max_batch=None):
        super().__init__(StableDiffusion3DenoiseStep(), rtol=rtol, solver=solver, max_batch=max_batch)
