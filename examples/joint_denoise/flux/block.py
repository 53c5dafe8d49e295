"""The denoising loop of Flux, solved as one joint fixed point."""

from diffusers.modular_pipelines.flux.denoise import FluxDenoiseStep

from fixedpoint_diffusion.modular import JointDenoise


class FluxJointDenoise(JointDenoise):
    def __init__(self, rtol=1e-3, solver="auto", max_batch=None):
        super().__init__(FluxDenoiseStep(), rtol=rtol, solver=solver, max_batch=max_batch)
