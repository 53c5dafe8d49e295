"""A model folder with a network of two layers that is nearly the identity, for images of 8 x 8 pixels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel

__all__ = ["save_tiny_model"]


def save_tiny_model(folder: Path) -> None:
    """Save the network, with random weights of a fixed seed, and a DDIM scheduler."""
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4,),
        norm_num_groups=2,
        attention_head_dim=2,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with torch.no_grad():
        network.conv_out.weight.mul_(0.005)
    network.save_pretrained(folder)
    DDIMScheduler().save_pretrained(folder)
