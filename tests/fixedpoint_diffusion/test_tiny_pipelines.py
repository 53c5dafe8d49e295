"""The tiny pipelines of the tests: they run offline, depend on what they are given, and come back as saved."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from tiny_pipelines import MORE, NAMES, arguments, pipeline
from torch import Tensor

# diffusers' own, about its use of numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EVERY = (*NAMES, *MORE)
# Built of the same parts as another one; the longest tests have them only in the slow suite.
VARIANTS = ("sd2-v", "sdxl-refiner", "img2img", "inpaint", "inpaint-9", "flux-schnell")
KINDS = [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in EVERY]
GIVEN_BY = {
    "image": ("sdxl-refiner", "img2img", "inpaint", "inpaint-9", "controlnet"),
    "ip_adapter_image": ("ip-adapter",),
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def sampled(pipe: DiffusionPipeline, given: dict[str, Any], *, steps: int = 4, seed: int = 1) -> Tensor:
    output = pipe(**given, num_inference_steps=steps, generator=torch.Generator().manual_seed(seed))
    return torch.as_tensor(output.images)


def moved(images: Tensor, others: Tensor) -> float:
    return float((images - others).norm() / images.norm())


@pytest.mark.parametrize("name", EVERY)
def test_two_images_by_a_generator(name):
    pipe, given = pipeline(name), arguments(name)
    images = sampled(pipe, given)
    assert len(images) == 2
    assert moved(images[0], images[1]) > 0.1
    assert torch.equal(images, sampled(pipe, given))
    assert moved(images, sampled(pipe, given, seed=2)) > 0.01


@pytest.mark.parametrize("name", KINDS)
def test_samples_neither_vanish_nor_grow_without_bound(name):
    pipe, given = pipeline(name), arguments(name)
    states: list[Tensor] = []
    step = pipe.scheduler.step

    def note(*args: Any, **named: Any) -> Any:
        result = step(*args, **named)
        states.append(result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    pipe.scheduler.step = note
    decoded = {**given, "output_type": "np"}
    assert sampled(pipe, decoded, steps=50 if name in ("sd1", "ddim") else 20).isfinite().all()
    assert len(states) >= 12  # 20 steps at a strength of 0.6
    assert 0.05 < float(states[-1].square().mean().sqrt()) < 500


@pytest.mark.parametrize("name", KINDS)
def test_timestep_matters(name):
    pipe, given = pipeline(name), arguments(name)
    images = sampled(pipe, given)

    def halved(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        if "timestep" in named:
            return args, {**named, "timestep": named["timestep"] / 2}
        return (args[0], args[1] / 2, *args[2:]), named

    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    network.register_forward_pre_hook(halved, with_kwargs=True)
    assert moved(images, sampled(pipe, given)) > 0.01


@pytest.mark.parametrize("name", [name for name in EVERY if "prompt" in arguments(name)])
def test_prompt_matters_to_its_own_image(name):
    pipe, given = pipeline(name), arguments(name)
    images, others = (sampled(pipe, {**given, "prompt": ["a cat", other]}) for other in ("two dogs", "a red car"))
    assert moved(images[0], others[0]) < 1e-4
    assert moved(images[1], others[1]) > 0.02


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_seed_of_the_weights_matters(name):
    assert moved(*(sampled(pipeline(name, seed=seed), arguments(name)) for seed in (0, 1))) > 0.1


def test_class_matters():
    pipe, given = pipeline("dit"), arguments("dit")
    assert moved(sampled(pipe, given)[1], sampled(pipe, {**given, "class_labels": [1, 7]})[1]) > 0.02


@pytest.mark.parametrize(("argument", "name"), [(key, name) for key, names in GIVEN_BY.items() for name in names])
def test_given_images_matter(argument, name):
    pipe, given = pipeline(name), arguments(name)
    assert moved(sampled(pipe, given), sampled(pipe, {**given, argument: 1 - given[argument]})) > 0.02


@pytest.mark.parametrize("name", ["inpaint", "inpaint-9"])
def test_mask_matters(name):
    pipe, given = pipeline(name), arguments(name)
    assert moved(sampled(pipe, given), sampled(pipe, {**given, "mask_image": 1 - given["mask_image"]})) > 0.02


def test_lora_matters():
    pipe, given = pipeline("lora"), arguments("lora")
    images = sampled(pipe, given)
    pipe.disable_lora()
    assert moved(images, sampled(pipe, given)) > 0.02


def test_flux_has_both_kinds_of_guidance():
    pipe, given = pipeline("flux"), arguments("flux")
    images = sampled(pipe, given)
    assert moved(images, sampled(pipe, {**given, "guidance_scale": 7.0})) > 0.01
    assert moved(images, sampled(pipe, {**given, "negative_prompt": ["blurred"] * 2, "true_cfg_scale": 3.0})) > 0.01


@pytest.mark.parametrize("name", KINDS)
def test_same_from_a_folder(name, tmp_path):
    images = sampled(pipeline(name), arguments(name))
    assert torch.equal(images, sampled(pipeline(name, folder=tmp_path / "first"), arguments(name)))
    if name not in ("ip-adapter", "lora"):  # the whole of a folder is the pipeline
        pipeline(name).save_pretrained(tmp_path / "second")
        again = DiffusionPipeline.from_pretrained(tmp_path / "second", local_files_only=True)
        again.set_progress_bar_config(disable=True)
        assert torch.equal(images, sampled(again, arguments(name)))


@pytest.mark.parametrize(
    ("name", "scheduler"), [("sd1", EulerDiscreteScheduler(steps_offset=1)), ("sd3", FlowMatchHeunDiscreteScheduler())]
)
def test_another_scheduler(name, scheduler, tmp_path):
    pipe = pipeline(name, scheduler=scheduler)
    assert pipe.scheduler is scheduler
    images = sampled(pipe, arguments(name))
    assert moved(images, sampled(pipeline(name), arguments(name))) > 0.01
    pipeline(name, scheduler=scheduler, folder=tmp_path)
    saved = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    saved.set_progress_bar_config(disable=True)
    assert type(saved.scheduler) is type(scheduler)
    assert torch.equal(images, sampled(saved, arguments(name)))


@pytest.mark.parametrize(
    "name", ["sd1", "sdxl", "sd3", "flux", "pixart", "dit", "controlnet", "ddpm", "ip-adapter", "lora"]
)
def test_bfloat16(name):
    pipe = pipeline(name, dtype=torch.bfloat16)
    assert {getattr(pipe, part).dtype for part in ("unet", "transformer") if hasattr(pipe, part)} == {torch.bfloat16}
    assert sampled(pipe, arguments(name), steps=2).isfinite().all()


def test_small_changes_of_the_start_stay_small():
    pipe = pipeline("ddim")
    ends: list[Tensor] = []
    for change in (0.0, 1e-3):
        state = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        state = state + change * torch.randn(state.shape, generator=torch.Generator().manual_seed(2))
        pipe.scheduler.set_timesteps(50)
        with torch.no_grad():
            for timestep in pipe.scheduler.timesteps:
                state = pipe.scheduler.step(pipe.unet(state, timestep).sample, timestep, state).prev_sample
        ends.append(state)
    assert moved(*ends) < 0.1  # between 0.4 and 1 where the last layer is random, too


@pytest.mark.parametrize("name", ["sd1", "sd3", "ip-adapter", "lora"])
def test_generator_of_torch_is_left_alone(name):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    pipeline(name, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
