"""Parts of tiny pipelines: tokenizers, encoders, autoencoders and networks of the real classes, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

__all__ = [
    "LATENT",
    "TOKENS",
    "WIDTH",
    "clip",
    "clip_tokenizer",
    "clip_vision",
    "drawn",
    "t5",
    "t5_tokenizer",
    "unet",
    "vae",
]

LATENT = 8  # height and width of the latents
WIDTH = 16  # of a text embedding of CLIP
TOKENS = 16  # in a prompt
_BYTES = 256


@torch.no_grad()
def drawn(network: nn.Module) -> nn.Module:
    """The network in evaluation mode, with every parameter drawn from torch's generator.

    Initial weights will not do: ControlNet begins with layers of zeros and so without effect, embeddings of tokens that
    are nearly alike give prompts little, and biases of zero hide an input of zero. Here a layer of ``n`` inputs has
    weights of variance ``1 / n``, so that every layer, hence the prediction, is about as large as its input.
    """
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn_like(parameter)
            if name == "weight" and isinstance(module, nn.Linear | nn.Conv2d):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif isinstance(module, nn.Embedding):
                parameter.copy_(noise)
            else:  # scales and shifts of normalisations, biases, tables
                parameter.add_(0.1 * noise)
    return network.eval()


def clip_tokenizer() -> CLIPTokenizer:
    """The tokenizer of CLIP without merges: every byte within a word, and every last one of a word, is a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)


def clip(*, projection: bool = False) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A text encoder of CLIP; with ``projection`` the class that SDXL and SD3 use."""
    config = CLIPTextConfig(
        vocab_size=2 * _BYTES + 2,
        bos_token_id=2 * _BYTES,
        eos_token_id=2 * _BYTES + 1,
        pad_token_id=2 * _BYTES + 1,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
    )
    return drawn((CLIPTextModelWithProjection if projection else CLIPTextModel)(config))


def clip_vision() -> CLIPVisionModelWithProjection:
    """The encoder of images that an IP-Adapter uses; its images are as large as those of the pipelines."""
    config = CLIPVisionConfig(
        image_size=2 * LATENT,
        patch_size=LATENT,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return drawn(CLIPVisionModelWithProjection(config))


def t5_tokenizer() -> T5Tokenizer:
    """The tokenizer of T5 with a token for each letter."""
    letters = "▁abcdefghijklmnopqrstuvwxyz0123456789,.'-"
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in letters)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=TOKENS)


def t5() -> T5EncoderModel:
    """A text encoder of T5, as wide as two of CLIP side by side: SD3 pads those to it."""
    config = T5Config(
        vocab_size=64, d_model=2 * WIDTH, d_kv=8, d_ff=4 * WIDTH, num_layers=1, num_heads=2, is_encoder_decoder=False
    )
    return drawn(T5EncoderModel(config))


def vae(**options: Any) -> AutoencoderKL:
    """An autoencoder that halves height and width, with four channels of latents."""
    return drawn(
        AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=2 * LATENT,
            **options,
        )
    )


def unet(**options: Any) -> UNet2DConditionModel:
    """The network of Stable Diffusion."""
    return drawn(
        UNet2DConditionModel(
            **{
                "sample_size": LATENT,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "block_out_channels": (16, 32),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "cross_attention_dim": WIDTH,
                "attention_head_dim": 2,
                **options,
            }
        )
    )
