"""Weights that are loaded into a pipeline after it: an IP-Adapter, and a LoRA."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from .parts import WIDTH

__all__ = ["ADAPTERS"]

_IP_ADAPTER = "ip_adapter.safetensors"
_IMAGE_TOKENS = 4
_NETWORKS = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "v_proj"]}


def _save_ip_adapter(pipe: DiffusionPipeline, folder: Path) -> None:
    """Save an IP-Adapter in the published layout: a projection to tokens, keys and values of each cross-attention."""
    weights = {
        "image_proj.proj.weight": torch.randn(_IMAGE_TOKENS * WIDTH, WIDTH) / WIDTH**0.5,
        "image_proj.proj.bias": 0.1 * torch.randn(_IMAGE_TOKENS * WIDTH),
        "image_proj.norm.weight": torch.ones(WIDTH),
        "image_proj.norm.bias": torch.zeros(WIDTH),
    }
    attentions = [module for name, module in pipe.unet.named_modules() if name.endswith("attn2")]
    for number, attention in enumerate(attentions):
        for kind in ("k", "v"):
            size = attention.inner_dim, WIDTH
            weights[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = torch.randn(size) / WIDTH**0.5
    save_file(weights, folder / _IP_ADAPTER)


def _load_ip_adapter(pipe: DiffusionPipeline, folder: Path) -> None:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would say that no modules are kept in float32
    pipe.load_ip_adapter(
        folder, subfolder="", weight_name=_IP_ADAPTER, image_encoder_folder=None, local_files_only=True
    )
    logging.set_verbosity(verbosity)


def _save_lora(pipe: DiffusionPipeline, folder: Path) -> None:
    """Save a LoRA of rank 4 for the network and the text encoder, whose second factors are not zero."""
    layers = {}
    for part, names in _NETWORKS.items():
        network = getattr(pipe, part)
        network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=names, init_lora_weights="gaussian"))
        layers[part] = {
            name: torch.randn_like(value) / value.shape[1] ** 0.5
            for name, value in get_peft_model_state_dict(network).items()
        }
    pipe.save_lora_weights(
        folder / "lora", unet_lora_layers=layers["unet"], text_encoder_lora_layers=layers["text_encoder"]
    )


def _load_lora(pipe: DiffusionPipeline, folder: Path) -> None:
    pipe.load_lora_weights(folder / "lora", weight_name="pytorch_lora_weights.safetensors", local_files_only=True)


# How to save each into a pipeline's folder, and how to load it from there.
ADAPTERS = {"ip-adapter": (_save_ip_adapter, _load_ip_adapter), "lora": (_save_lora, _load_lora)}
