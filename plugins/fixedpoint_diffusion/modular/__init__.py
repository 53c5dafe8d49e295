"""Modular Diffusers: a block that takes the place of a denoising loop, and solves it as one joint fixed point."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fixedpoint._lazy import exported

if TYPE_CHECKING:
    from fixedpoint_diffusion.modular.joint_denoise import JointDenoise as JointDenoise

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "fixedpoint_diffusion.modular.joint_denoise": ("JointDenoise",),
    },
)
