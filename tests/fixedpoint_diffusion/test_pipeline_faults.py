"""Pipelines with something wrong about them end with a status or with a sentence that is true."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from tiny_pipelines import arguments, pipeline

from fixedpoint.chains import BlockSecant, ChainSolver
from fixedpoint_diffusion import parallel


@pytest.mark.parametrize("form", ["affine", "predictions"])
def test_a_network_that_returns_nan_is_said_to_do_so(form: str) -> None:
    """It was taken for one that returns another output in a larger batch."""
    pipe = pipeline("sd1")
    torch.nn.init.constant_(pipe.unet.conv_out.bias, torch.nan)
    sampler = parallel(pipe, solver=ChainSolver(accelerator=BlockSecant()), form=form)
    problem = sampler.problem(**arguments("sd1"), num_inference_steps=3)
    with torch.no_grad(), pytest.warns(UserWarning, match="2 of 2 rows nonfinite"):
        sampler(**arguments("sd1"), num_inference_steps=3)
    assert sampler.form_of(problem) == form
    assert [status.label for status in sampler.solution.status] == ["nonfinite"] * 2


def test_a_network_that_also_returns_a_variance_is_compared_as_a_whole() -> None:
    """In the affine form only the first half of its channels is used."""
    pipe = pipeline("dit")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    sampler = parallel(pipe, solver=ChainSolver(accelerator=BlockSecant()), rtol=1e-4, form="affine")
    call = {**arguments("dit"), "num_inference_steps": 4}
    found = sampler(**call, generator=torch.Generator().manual_seed(0)).images
    own = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    assert abs(found - own).max() < 1e-3
