"""How each tiny pipeline is put together; the settings of its scheduler are those of the published model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)

from .parts import LATENT, WIDTH, clip, clip_tokenizer, drawn, t5, t5_tokenizer, unet, vae

__all__ = ["FAMILIES"]

_LEVELS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _ddim(**options: Any) -> DDIMScheduler:
    return DDIMScheduler(**_LEVELS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **options)


def _sd(kind: type[DiffusionPipeline] = StableDiffusionPipeline, **parts: Any) -> DiffusionPipeline:
    """A pipeline of Stable Diffusion, in which ``parts`` replace those of SD1."""
    components = {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(),
        "scheduler": _ddim(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return kind(**{**components, **parts}, requires_safety_checker=False)


def _sdxl(*, refiner: bool = False) -> DiffusionPipeline:
    first = (
        {"text_encoder": None, "tokenizer": None}
        if refiner
        else {"text_encoder": clip(), "tokenizer": clip_tokenizer()}
    )
    numbers = 5 if refiner else 6  # sizes, crops and either the aesthetic score or the target size
    components = {
        "vae": vae(scaling_factor=0.13025, force_upcast=False),
        **first,
        "text_encoder_2": clip(projection=True),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet(
            cross_attention_dim=WIDTH if refiner else 2 * WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=8 * numbers + WIDTH,
        ),
        "scheduler": EulerDiscreteScheduler(**_LEVELS, timestep_spacing="leading", steps_offset=1),
    }
    if refiner:
        return StableDiffusionXLImg2ImgPipeline(
            **components, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False, add_watermarker=False
        )
    return StableDiffusionXLPipeline(**components, add_watermarker=False)


def _sd3() -> DiffusionPipeline:
    network = SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=LATENT,
    )
    return StableDiffusion3Pipeline(
        transformer=drawn(network),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
    )


def _flux() -> DiffusionPipeline:
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,  # the four channels of the latents, in patches of two by two
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        transformer=drawn(network),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd1": _sd,
    "sd2-v": lambda: _sd(scheduler=_ddim(prediction_type="v_prediction")),
    "sdxl": _sdxl,
    "sdxl-refiner": lambda: _sdxl(refiner=True),
    "sd3": _sd3,
    "flux": _flux,
}
