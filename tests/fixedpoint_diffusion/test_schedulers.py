"""Schedulers: each of diffusers' is sampled as its own loop samples, or refused with what to do; none is guessed."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, PNDMScheduler, UNet2DModel

import fixedpoint
from fixedpoint_diffusion import DDIMChain, DDIMSchedule, ddim_problem, invert
from fixedpoint_diffusion.models.folder import FolderError, ModelFolder
from fixedpoint_diffusion.schedules.schedulers import AssignedSchedule

EVERY = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
# Some of them compute with numpy as it was.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    phase = (timestep.to(x) / 1000 * math.pi).view(-1, *[1] * (x.ndim - 1))
    return 0.9 * torch.tanh(0.8 * x + 0.4 * x.roll(1, dims=-1) + torch.sin(phase))


def start(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def looped(scheduler: Any, x: torch.Tensor) -> torch.Tensor:
    """The scheduler's own loop, over whatever timesteps it has."""
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(len(x))), int(t), x).prev_sample
    return x


def ours(schedule: Any, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
    found: torch.Tensor = fixedpoint.solve(ddim_problem(network, schedule, x, **arguments), solver="serial").z[:, -1]
    return found


BUILT = [
    name
    for name in EVERY
    if name
    not in (
        # require arguments, or libraries that are not installed
        *("AmusedScheduler", "CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"),
        *("RFD4ProteinaScheduler", "VQDiffusionScheduler"),
    )
]


@pytest.mark.parametrize("name", BUILT)
def test_every_scheduler_is_its_own_loop_or_a_sentence(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    if name == "DDIMScheduler":
        scheduler.set_timesteps(10)
        torch.testing.assert_close(ours(scheduler, start()), looped(scheduler, start()), rtol=1e-4, atol=1e-4)
        return
    with pytest.raises(TypeError, match=f"requires a diffusers DDIMScheduler, got {name}") as caught:
        ddim_problem(network, scheduler, start())
    if "from_config" in str(caught.value):
        assert ("take sampling_problem" in str(caught.value)) == ("Inverse" not in name)
        assert "DDIMScheduler.from_config(scheduler.config)" in str(caught.value)
        # what the sentence promises holds of the scheduler that it leads to
        also = dict(re.findall(r"(beta_\w+)=('?[\w.]+'?)", str(caught.value)))
        arguments = {name: ast.literal_eval(value) for name, value in also.items()}
        theirs = DDIMScheduler.from_config(scheduler.config, **arguments)
        torch.testing.assert_close(theirs.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-6, atol=0)
        assert theirs.config.prediction_type == scheduler.config.get("prediction_type", "epsilon")
        adds = theirs.config.clip_sample and not scheduler.config.get("clip_sample", False)
        assert ("but clip_sample=True" in str(caught.value)) == adds
        assert ours(theirs, start(), num_inference_steps=3).isfinite().all()


@pytest.mark.parametrize("name", BUILT)
def test_every_folder_is_sampled_as_its_scheduler_or_a_sentence(name: str, tmp_path: Path) -> None:
    scheduler = getattr(diffusers, name)()
    config = {"_class_name": "UNet2DModel", "in_channels": 3, "out_channels": 3, "sample_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    scheduler.save_pretrained(tmp_path)
    folder = ModelFolder.open(tmp_path)
    if name == "DDIMScheduler":
        assert (folder.schedule(), folder.notes) == (DDIMSchedule(), ())
    elif name == "DDPMScheduler":
        assert folder.schedule() == DDIMSchedule.from_scheduler(DDIMScheduler.from_config(scheduler.config))
        (note,) = folder.notes
        assert "DDPMScheduler; sampled by DDIM" in note
        assert "clip_sample=True, its own" in note
    else:
        with pytest.raises(FolderError, match=name):
            folder.schedule()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("count", [1, 7, 10])
def test_what_set_timesteps_has_set_is_sampled(spacing: str, count: int) -> None:
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing=spacing, set_alpha_to_one=False)
    scheduler.set_timesteps(count)
    problem = ddim_problem(network, scheduler, start())
    assert problem.length == count
    theirs = looped(scheduler, start())
    torch.testing.assert_close(ours(scheduler, start()), theirs, rtol=1e-4, atol=1e-5)
    # read once and passed on it is the same, whatever is changed of it
    read = DDIMSchedule.from_scheduler(scheduler)
    torch.testing.assert_close(ours(read, start()), theirs, rtol=1e-4, atol=1e-5)
    assert DDIMChain(network, scheduler).length == count


@pytest.mark.parametrize(
    ("count", "timesteps"),
    [
        (4, [901, 801, 701, 601]),  # steps of 250, so that none leads to the next
        (10, [600, 500, 400, 300, 200, 100, 0]),  # the end of a chain, as for images that are changed a little
        (50, [999, 750, 20, 3]),
        (1000, [5, 4, 3]),
    ],
)
def test_timesteps_assigned_by_hand_are_stepped_as_the_scheduler_steps(count: int, timesteps: list[int]) -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.timesteps, scheduler.num_inference_steps = torch.tensor(timesteps), count
    assert ddim_problem(network, scheduler, start()).length == len(timesteps)
    torch.testing.assert_close(ours(scheduler, start()), looped(scheduler, start()), rtol=1e-4, atol=1e-5)


def test_what_is_asked_for_goes_before_what_was_set() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    plain = DDIMScheduler(clip_sample=False)
    for arguments in ({"num_inference_steps": 20}, {"timesteps": [900, 300, 20]}):
        assert torch.equal(ours(scheduler, start(), **arguments), ours(plain, start(), **arguments))
    assert ddim_problem(network, plain, start()).length == 50


def test_an_inversion_has_the_steps_of_the_scheduler() -> None:
    scheduler = DDIMScheduler(clip_sample=True)
    scheduler.set_timesteps(6)
    found = invert(network, scheduler, 0.1 * start(), clipping="ignore")
    assert found.residuals.shape == (2, 6)
    found = invert(network, scheduler, 0.1 * start(), clipping="ignore", timesteps=[700, 400, 100])
    assert found.residuals.shape == (2, 3)


def test_betas_of_numpy() -> None:
    betas = np.linspace(1e-3, 1e-2, 100)
    scheduler = DDIMScheduler(num_train_timesteps=100, trained_betas=betas, clip_sample=False)
    scheduler.set_timesteps(5)
    torch.testing.assert_close(ours(scheduler, start()), looped(scheduler, start()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip_sample", True),
        ("prediction_type", "v_prediction"),
        ("timestep_spacing", "trailing"),
        ("thresholding", True),
        ("steps_offset", 1),
    ],
)
def test_a_configuration_is_taken_as_it_was_changed(name: str, value: Any) -> None:
    """``scheduler.config.clip_sample = False`` changes an attribute, by which the scheduler steps, and no entry."""
    scheduler = DDIMScheduler(clip_sample=False)
    setattr(scheduler.config, name, value)
    scheduler.set_timesteps(7)
    x = 2 * start()
    torch.testing.assert_close(ours(scheduler, x), looped(scheduler, x), rtol=1e-4, atol=1e-4)
    assert getattr(DDIMSchedule.from_scheduler(scheduler), name) == value


class Derived(DDIMScheduler):
    """Somebody's own."""


def changed(**attributes: Any) -> DDIMScheduler:
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    for name, value in attributes.items():
        setattr(scheduler, name, value)
    return scheduler


def unset() -> DDIMScheduler:
    scheduler = DDIMScheduler()
    scheduler.timesteps = torch.tensor([3, 2])
    return scheduler


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (Derived, "derived from it, whose steps may be others"),
        (lambda: DDIMScheduler, "got the class DDIMScheduler itself; pass an instance"),
        (lambda: changed().config, r"a configuration; pass DDIMScheduler.from_config\(config\)"),
        (lambda: dict(changed().config), "got dict, a configuration"),
        (lambda: "google/ddpm", r"got str 'google/ddpm'; pass DDIMScheduler.from_pretrained"),
        (lambda: None, "got NoneType"),
        (lambda: PNDMScheduler(), r"but clip_sample=True, .*from_config\(scheduler.config\)"),
        (unset, "num_inference_steps, by which scheduler.step reckons"),
        (lambda: changed(timesteps=torch.tensor([1, 5])), "got 1 before 5; .* reverse them"),
        (lambda: changed(timesteps=torch.tensor([5, 5, 1])), "got 5 before 5; leave out what is there twice"),
        (lambda: changed(timesteps=torch.tensor([5.0, 1.0])), "must be a list of integers"),
        (lambda: changed(timesteps=torch.tensor([1000, 1])), "from 0 to num_train_timesteps - 1 = 999, got 1000"),
        (lambda: changed(num_inference_steps=0), "num_inference_steps must be from 1 to 1000, got 0"),
        (lambda: changed(alphas_cumprod=torch.linspace(0.9, 0.1, 1000)), "alphas_cumprod was changed by hand"),
        (lambda: changed(final_alpha_cumprod=torch.tensor(0.5)), "final_alpha_cumprod was changed by hand"),
        (lambda: changed(step=looped), "step was replaced by hand"),
    ],
)
def test_what_is_no_schedule_is_a_sentence(given: Callable[[], Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        ddim_problem(network, given(), start())


def test_a_pipeline_is_told_apart_into_its_parts() -> None:
    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
    pipeline = DDIMPipeline(unet, DDIMScheduler())
    parts = r"pipeline.unet .* DDIMScheduler.from_config\(pipeline.scheduler.config\)"
    with pytest.raises(TypeError, match=f"got a whole DDIMPipeline; pass its parts: {parts}"):
        ddim_problem(pipeline, pipeline.scheduler, start())
    with pytest.raises(TypeError, match=r"got a whole DDIMPipeline; pass DDIMScheduler.from_config"):
        ddim_problem(unet, pipeline, start())


def test_a_schedule_with_its_timesteps_is_plain_options() -> None:
    schedule = DDIMSchedule.from_scheduler(changed())
    assert isinstance(schedule, AssignedSchedule)
    assert (schedule.num_inference_steps, schedule.assigned_timesteps) == (10, None)
    assert DDIMSchedule.from_scheduler(DDPMSCHEDULED) == DDIMSchedule()


DDPMSCHEDULED = DDIMScheduler.from_config(DDPMScheduler().config)
