"""Networks of low precision under states in float32."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_pipelines import arguments, pipeline

from fixedpoint.chains import BlockSecant, ChainSolver
from fixedpoint_diffusion import parallel


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_calls_without_the_pipelines_code_are_in_the_networks_dtype(dtype: torch.dtype) -> None:
    pipe = pipeline("sd1", dtype=dtype)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    call = {**arguments("sd1"), "num_inference_steps": 4, "guidance_scale": 2.0}
    own = pipe(**call, generator=torch.Generator().manual_seed(1)).images
    sampler = parallel(pipe, form="affine", solver=ChainSolver(accelerator=BlockSecant()))
    ours = sampler(**call, generator=torch.Generator().manual_seed(1)).images
    assert ours.dtype == dtype
    assert float((ours.double() - own.double()).norm() / own.double().norm()) <= 16 * torch.finfo(dtype).eps
