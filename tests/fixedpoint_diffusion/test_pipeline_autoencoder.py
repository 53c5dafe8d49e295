"""What replays do to an autoencoder, and images taken to a pipeline's latents and back by the pipeline's own code."""

from __future__ import annotations

import pytest
import torch
from tiny_pipelines import arguments, pipeline

from fixedpoint.chains import BlockSecant, ChainSolver
from fixedpoint_diffusion import parallel

# diffusers' own, about its use of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")
def test_an_autoencoder_decoded_in_float32_is_in_float16_afterwards() -> None:
    """As that of Stable Diffusion XL in float16, whose pipeline takes it to float32 before it decodes, and back."""
    pipe = pipeline("sdxl", dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    options = {**arguments("sdxl"), "num_inference_steps": 4, "output_type": "pt"}
    own = pipe(**options, generator=torch.Generator().manual_seed(1)).images
    sampler = parallel(pipe, solver=ChainSolver(accelerator=BlockSecant()))
    problem = sampler.problem(**options, generator=torch.Generator().manual_seed(1))
    assert pipe.vae.dtype == torch.float16
    assert problem.length == 4
    ours = sampler(**options, generator=torch.Generator().manual_seed(1)).images
    assert pipe.vae.dtype == torch.float16
    assert float((ours.float() - own.float()).abs().max()) <= 0.05  # float16, in other batches
