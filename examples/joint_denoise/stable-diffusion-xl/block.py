"""The denoising loop of Stable Diffusion XL, solved as one joint fixed point."""

from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep

from fixedpoint_diffusion.modular import JointDenoise


class StableDiffusionXLJointDenoise(JointDenoise):
    def __init__(self, rtol=1e-3, solver="auto", max_batch=None):
        super().__init__(StableDiffusionXLDenoiseStep(), rtol=rtol, solver=solver, max_batch=max_batch)
