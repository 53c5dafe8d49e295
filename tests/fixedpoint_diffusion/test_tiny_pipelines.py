"""The tiny pipelines of the tests: they run, they depend on what they are given, and they come back as saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler
from pipelines import NAMES, arguments, pipeline
from torch import Tensor

# diffusers' own, about its use of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def sampled(pipe: DiffusionPipeline, given: dict[str, Any], seed: int = 1) -> Tensor:
    output = pipe(**given, num_inference_steps=4, generator=torch.Generator().manual_seed(seed))
    return torch.as_tensor(output.images)


@pytest.mark.parametrize("name", NAMES)
def test_two_images_by_a_generator(name):
    pipe, given = pipeline(name), arguments(name)
    images = sampled(pipe, given)
    assert len(images) == 2
    assert images.isfinite().all()
    assert (images[0] - images[1]).norm() > 0.1 * images.norm()
    assert torch.equal(images, sampled(pipe, given))
    assert torch.equal(images, sampled(pipeline(name), given))
    assert not torch.equal(images, sampled(pipe, given, seed=2))


@pytest.mark.parametrize("name", [name for name in NAMES if "prompt" in arguments(name)])
def test_prompt_matters(name):
    pipe, given = pipeline(name), arguments(name)
    images, others = (sampled(pipe, {**given, "prompt": ["a cat", other]}) for other in ("two dogs", "a red car"))
    assert torch.allclose(images[0], others[0], rtol=1e-3, atol=1e-3 * float(images.std()))
    assert (images[1] - others[1]).norm() > 0.02 * images[1].norm()
