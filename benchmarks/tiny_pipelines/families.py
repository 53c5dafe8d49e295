"""How each tiny pipeline is put together; the settings of its scheduler are those of the published model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import (
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DModel,
)

from .parts import LATENT, WIDTH, clip, clip_tokenizer, clip_vision, drawn, t5, t5_tokenizer, unet, vae

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


def _flux(*, distilled_guidance: bool = True) -> DiffusionPipeline:
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,  # the four channels of the latents, in patches of two by two
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=distilled_guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        transformer=drawn(network),
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if distilled_guidance else 1.0, use_dynamic_shifting=distilled_guidance
        ),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    )


def _pixart() -> DiffusionPipeline:
    network = PixArtTransformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=4,
        out_channels=8,  # the second half, the variance, is not used by the pipeline
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        cross_attention_dim=32,
        caption_channels=2 * WIDTH,
        use_additional_conditions=False,
    )
    return PixArtAlphaPipeline(
        transformer=drawn(network),
        scheduler=DPMSolverMultistepScheduler(beta_end=0.02, beta_schedule="linear"),
        vae=vae(),
        text_encoder=t5(),
        tokenizer=t5_tokenizer(),
    )


def _dit() -> DiffusionPipeline:
    network = DiTTransformer2DModel(
        sample_size=LATENT,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_embeds_ada_norm=1000,  # classes: the pipeline takes class 1000 for none
    )
    scheduler = DDIMScheduler(beta_end=0.02, beta_schedule="linear", clip_sample=False)
    return DiTPipeline(transformer=drawn(network), vae=vae(), scheduler=scheduler)


def _controlnet() -> DiffusionPipeline:
    base = unet()
    network = ControlNetModel.from_unet(base, conditioning_embedding_out_channels=(8, 16))
    return _sd(StableDiffusionControlNetPipeline, unet=base, controlnet=drawn(network))


def _images_only() -> UNet2DModel:
    network = UNet2DModel(
        sample_size=LATENT,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
    )
    return drawn(network)


FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd1": _sd,
    "sd2-v": lambda: _sd(scheduler=_ddim(prediction_type="v_prediction")),
    "sdxl": _sdxl,
    "sdxl-refiner": lambda: _sdxl(refiner=True),
    "sd3": _sd3,
    "flux": _flux,
    "pixart": _pixart,
    "dit": _dit,
    "img2img": lambda: _sd(StableDiffusionImg2ImgPipeline),
    "inpaint": lambda: _sd(StableDiffusionInpaintPipeline),
    "inpaint-9": lambda: _sd(StableDiffusionInpaintPipeline, unet=unet(in_channels=9)),
    "controlnet": _controlnet,
    "ddpm": lambda: DDPMPipeline(_images_only(), DDPMScheduler()),
    "ddim": lambda: DDIMPipeline(_images_only(), DDIMScheduler()),
    "ip-adapter": lambda: _sd(image_encoder=clip_vision()),
    "lora": _sd,
    "flux-schnell": lambda: _flux(distilled_guidance=False),
}
